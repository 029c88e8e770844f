"""What the numbers of a fitness report mean: one sentence, one level and one piece of advice per rule.

Here: which numbers are judged, the thresholds, and where each threshold comes from. "Measured" figures are those of
`mini` on 256 photographs, one view of 112 px each (2026-11-25); it is the only tokenizer that pre-training was tried
with here, so they mark what works, not where it ends. "Arbitrary" thresholds are where a careful engineer would look
twice. A verdict is a reason to look, not a proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beit.tokenize.config import TokenizeConfig
from beit.tokenize.fitness.measure import Fitness

Level = Literal["good", "look", "bad"]
LEVEL_NAMES: dict[Level, str] = {"good": "good", "look": "look at this", "bad": "bad"}
MAX_NEW_WORD_PROBABILITY = 0.01
"""Chance of a new word above which the sample is too small for unused words to prove anything. Evenly used words give
0.7 % at 5 tokens per word and 37 % at 1; the place on that curve is arbitrary."""
MIN_FIT_TOKENS_PER_WORD = 20.0
"""Tokens per word below which a small gain from neighbours proves nothing: `mini` gained 2.3 % at 5 tokens per word,
5.3 % at 11, 8.7 % at 21 and 13 % at 50 (measured on 64 to 600 photographs). An arbitrary place on that curve."""
LOW_GAIN, HIGH_GAIN, COPYING_GAIN = 0.01, 0.4, 0.6
"""Shares of a token's bits that its two neighbours tell; arbitrary. Measured: 0.078 for `mini`, 0.19 for a dVAE of 512
words after three minutes of training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One judgement."""

    key: str
    """Name of the rule."""
    title: str
    """What is judged."""
    level: Level
    """"good", "look" or "bad"."""
    text: str
    """The finding, with its numbers."""
    advice: str
    """What to do about it; empty where nothing need be done."""
    rule: str
    """What made the level."""


def judge(fitness: Fitness) -> list[Verdict]:
    """Return the verdicts on a tokenizer in the order of the report."""
    verdicts = [_usage(fitness), _balance(fitness), _border(fitness), _copies(fitness), _context(fitness)]
    if fitness.reconstruction is not None:
        verdicts.append(_reconstruction(fitness))
    verdicts += [_shift(fitness), _whole_shift(fitness), _jpeg(fitness), _precision(fitness)]
    return verdicts


def judge_images(num_bad: int, num_drawn: int) -> Verdict:
    """Return the verdict on the images themselves."""
    budget = TokenizeConfig().bad_sample_budget
    share = num_bad / num_drawn
    level: Level = "good" if not num_bad else ("look" if share <= 0.1 else "bad")
    some = num_bad > 0
    return Verdict(
        key="images",
        title="Images",
        level=level,
        text=f"{num_bad} of {num_drawn} images drawn ({percent(share)}) cannot be read" if some else "all can be read",
        advice=f"repair or remove them: `beit tokenize` stops when more than {percent(budget)} of all images are "
        "unusable (bad_sample_budget)"
        if some
        else "",
        rule="good if every image drawn can be read, bad above 10 % (arbitrary)",
    )


def _verdict(key: str, value: float, text: str, advice: str, *, level: Level | None = None) -> Verdict:
    rule = RULES[key]
    found = rule.level(value) if level is None else level
    return Verdict(
        key=key,
        title=rule.title,
        level=found,
        text=text,
        advice="" if found == "good" else advice,
        rule=rule.as_text(),
    )


def _usage(fitness: Fitness) -> Verdict:
    words, vocab_size = fitness.tokens.words, fitness.tokenizer.vocab_size
    unused = vocab_size - words.words_used
    text = (
        f"{percent(unused / vocab_size)} of the vocabulary ({unused:,} of {vocab_size:,} words) never occurs in "
        f"{words.num_tokens:,} tokens"
    )
    text += f"; the chance that one more token is a new word is {percent(words.unseen_probability)}"
    if not unused:
        text = f"all {vocab_size:,} words occur in {words.num_tokens:,} tokens"
    share = words.words_used / words.expected_words_used
    if words.unseen_probability > MAX_NEW_WORD_PROBABILITY and RULES["usage"].level(share) != "good":
        text += ", so more images would show more words"
        advice = f"measure more images before judging (--images {2 * fitness.num_views} or more)"
        return _verdict("usage", share, text, advice, level="look")
    advice = (
        "words that never occur teach nothing and cost a row of the prediction head each: train with a smaller "
        "model.vocab_size, on images like these, or with a larger objective.usage_weight"
    )
    return _verdict("usage", share, text, advice)


def _balance(fitness: Fitness) -> Verdict:
    words, vocab_size = fitness.tokens.words, fitness.tokenizer.vocab_size
    share = words.perplexity / vocab_size
    text = (
        f"the tokens are as diverse as {words.perplexity:,.0f} equally frequent words ({percent(share)} of the "
        f"vocabulary); the commonest word makes up {percent(words.commonest_share)}"
    )
    advice = (
        "a few words cover most of the pictures, so pre-training can score by guessing them: train on images like "
        "these, or raise objective.usage_weight"
    )
    return _verdict("balance", share, text, advice)


def _border(fitness: Fitness) -> Verdict:
    positions = fitness.tokens.positions
    difference = positions.border_bits - positions.inner_bits
    side = "less" if difference < 0 else "more"
    text = f"border tokens carry {abs(difference):.2f} bits {side} than inner ones"
    advice = (
        "the tokenizer sees the edge of the picture rather than its content there: look at the map; padding, frames or "
        "black bars in the images are the usual causes"
    )
    return _verdict("border", abs(difference), text, advice)


def _copies(fitness: Fitness) -> Verdict:
    neighbours = fitness.tokens.neighbours
    text = (
        f"{percent(neighbours.left_share)} of the tokens repeat their left neighbour and "
        f"{percent(neighbours.up_share)} the upper one, where chance gives {percent(neighbours.chance)}"
    )
    advice = (
        "large plain areas, or words too coarse for these images: pre-training will be rewarded for copying; mask "
        "larger blocks, use larger tokens, or a larger vocabulary"
    )
    return _verdict("copies", max(neighbours.left_share, neighbours.up_share), text, advice)


def _context(fitness: Fitness) -> Verdict:
    context = fitness.tokens.context
    share = context.gain_bits / context.unigram_bits if context.unigram_bits else 0.0
    text = (
        f"left and upper neighbour tell {max(context.gain_bits, 0.0):.2f} of a token's {context.unigram_bits:.2f} bits "
        f"({percent(max(share, 0.0))}), at least: a larger model, or more images, would find more"
    )
    level: Level = "good"
    advice = ""
    if share < LOW_GAIN and context.num_fit_tokens < MIN_FIT_TOKENS_PER_WORD * fitness.tokenizer.vocab_size:
        level = "look"
        text += f", and {context.num_fit_tokens:,} tokens are too few to know {fitness.tokenizer.vocab_size:,} words"
        advice = "measure more images (--images)"
    elif share < LOW_GAIN:
        level = "look"
        advice = (
            "tokens look independent of their surroundings, which leaves masked prediction little to learn: check the "
            "shift and JPEG rows for words chosen by noise"
        )
    elif share > HIGH_GAIN:
        level = "look" if share <= COPYING_GAIN else "bad"
        advice = (
            "most of a token can be guessed from the two beside it, so pre-training will learn to continue rather than "
            "to recognise: use larger tokens, or mask larger blocks"
        )
    rule = (
        f"good if neighbours tell {percent(LOW_GAIN)} to {percent(HIGH_GAIN)} of the bits, bad above "
        f"{percent(COPYING_GAIN)}; arbitrary; measured: 7.8 % for mini"
    )
    return Verdict(key="context", title="Context", level=level, text=text, advice=advice, rule=rule)


def _reconstruction(fitness: Fitness) -> Verdict:
    found = fitness.reconstruction
    assert found is not None
    gain = found.psnr_gain
    text = (
        f"reconstructs {abs(gain):.1f} dB {'better' if gain >= 0 else 'worse'} than the mean colour of each square "
        f"({found.psnr:.1f} against {found.block_mean_psnr:.1f} dB; SSIM {found.ssim:.2f} against "
        f"{found.block_mean_ssim:.2f})"
    )
    advice = (
        "the words carry little more than colour here: train longer, with more words, or on images like these; look at "
        "the worst pictures below"
    )
    return _verdict("reconstruction", gain, text, advice)


def _shift(fitness: Fitness) -> Verdict:
    share = {shift.shift_px: shift.equal_share for shift in fitness.stability.shifts}[1]
    text = f"a shift of one pixel changes {percent(1.0 - share)} of the tokens"
    advice = (
        "what a token is depends on where the grid happens to lie, and pre-training cannot predict that: prefer a "
        "tokenizer with a higher share here, or larger tokens"
    )
    return _verdict("shift", share, text, advice)


def _whole_shift(fitness: Fitness) -> Verdict:
    factor = fitness.tokenizer.downsampling
    share = {shift.shift_px: shift.equal_share for shift in fitness.stability.shifts}[factor]
    text = f"shifted by one whole token ({factor} px), {percent(share)} of the tokens move along unchanged"
    advice = (
        "the rest depends on how far the picture's edge is away: the tokenizer looks far, or pads badly; larger views "
        "have less edge"
    )
    return _verdict("whole_shift", share, text, advice)


def _jpeg(fitness: Fitness) -> Verdict:
    share = fitness.stability.jpeg_equal_share
    text = f"mild JPEG compression changes {percent(1.0 - share)} of the tokens"
    advice = "words hang on detail that nobody sees: expect noisy targets from images that were saved more than once"
    return _verdict("jpeg", share, text, advice)


def _precision(fitness: Fitness) -> Verdict:
    shares = fitness.stability.dtype_equal_shares
    worst = min(shares, key=lambda dtype: shares[dtype])
    text = "the same word as in float32 for " + ", ".join(
        f"{percent(share)} of the tokens in {dtype}" for dtype, share in shares.items()
    )
    advice = f'tokenize in float32 (--set dtype="float32"), not in {worst}'
    return _verdict("precision", shares[worst], text, advice)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Two thresholds for one number. Where `good` is above `bad`, more is better."""

    key: str
    """Name in the JSON."""
    title: str
    """Name on the page."""
    good: float
    """From here on all is well."""
    bad: float
    """From here on something is wrong; between the two, somebody should look."""
    what: str
    """The number, in words; completes "good if ..."."""
    unit: str = ""
    """"%", "dB" or "bits"."""
    origin: str
    """Where the thresholds come from."""

    def level(self, value: float) -> Level:
        """Judge a number."""
        sign = 1.0 if self.good > self.bad else -1.0
        if sign * value >= sign * self.good:
            return "good"
        return "bad" if sign * value < sign * self.bad else "look"

    def as_text(self) -> str:
        """Spell the rule out."""
        scale = 100.0 if self.unit == "%" else 1.0
        unit = f" {self.unit}" if self.unit else ""
        more = self.good > self.bad
        return (
            f"good if {self.what} is at {'least' if more else 'most'} {scale * self.good:g}{unit}, bad "
            f"{'below' if more else 'above'} {scale * self.bad:g}{unit}; {self.origin}"
        )


def percent(share: float) -> str:
    """Write a share: "38 %", "4.7 %", "97.9 %", "0.41 %"; near 0 and 100 with more digits, so that it reads neither."""
    value = 100.0 * share
    distance = min(abs(value), abs(100.0 - value))
    if distance == 0.0:
        return f"{value:.0f} %"
    if distance < 0.01:
        return "below 0.01 %" if value < 50.0 else "above 99.99 %"
    digits = 0 if distance >= 10.0 else (1 if distance >= 1.0 else 2)
    return f"{value:.{digits}f} %"


RULES = {
    rule.key: rule
    for rule in (
        Rule(
            key="usage",
            title="Use of the vocabulary",
            good=0.9,
            bad=0.6,
            unit="%",
            what="the share of words used, of those that evenly used words would show in as many tokens,",
            origin="arbitrary; measured: 99.5 % for mini",
        ),
        Rule(
            key="balance",
            title="Balance of the words",
            good=0.5,
            bad=0.2,
            unit="%",
            what="the perplexity, as a share of the vocabulary,",
            origin="arbitrary; measured: 82 % for mini",
        ),
        Rule(
            key="border",
            title="Border of the picture",
            good=0.5,
            bad=1.5,
            unit="bits",
            what="the difference in entropy between border and inner tokens",
            origin="arbitrary; measured: 0.19 bits for mini",
        ),
        Rule(
            key="copies",
            title="Copies of neighbours",
            good=0.25,
            bad=0.5,
            unit="%",
            what="the share of tokens that repeat a neighbour",
            origin="arbitrary; measured: 8 % for mini",
        ),
        Rule(
            key="reconstruction",
            title="Reconstruction",
            good=1.0,
            bad=0.0,
            unit="dB",
            what="the distance to the mean colour of each square",
            origin="0 dB needs no learning (but 24 bits per token); 1 dB is arbitrary; measured: 2.3 dB for mini",
        ),
        Rule(
            key="shift",
            title="Shift by one pixel",
            good=0.4,
            bad=0.15,
            unit="%",
            what="the share of tokens that stay",
            origin="arbitrary; measured: 45 % for mini",
        ),
        Rule(
            key="whole_shift",
            title="Shift by one token",
            good=0.75,
            bad=0.5,
            unit="%",
            what="the share of tokens that move along",
            origin="arbitrary; measured: 81 % for mini",
        ),
        Rule(
            key="jpeg",
            title="JPEG re-encoding",
            good=0.75,
            bad=0.5,
            unit="%",
            what="the share of tokens that stay",
            origin="arbitrary; measured: 87 % for mini",
        ),
        Rule(
            key="precision",
            title="Number formats",
            good=0.95,
            bad=0.9,
            unit="%",
            what="the share of tokens that stay",
            origin="`beit verify --audit` alarms below 90 %; measured: 98 % for mini in bfloat16",
        ),
    )
}

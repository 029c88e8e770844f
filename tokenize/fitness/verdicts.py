"""What the numbers of a fitness report mean: one sentence, one level and one piece of advice per rule.

Here: which numbers are judged, the thresholds, and where each threshold comes from. "Measured" figures are those of
`mini` on 256 photographs, one view of 112 px each (2026-11-25); it is the only tokenizer that pre-training was tried
with here, so they mark what works, not where it ends. "Arbitrary" thresholds are where a careful engineer would look
twice. A verdict is a reason to look, not a proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from beit.common.pages.numbers import percent
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

CERTAIN = 2.0
"""Standard errors from which a difference is no chance: a bound of about 95 %."""
ENOUGH_LABELLED = 1000
"""Labelled images from which a missing difference says something: a standard error near one point; arbitrary."""


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


def judge(fitness: Fitness, *, num_in_source: int) -> list[Verdict]:
    """Return the verdicts on a tokenizer in the order of the report, of views of some of so many images."""
    more = _measure_more(fitness.num_views, num_in_source)
    return [
        _usage(fitness, more),
        *_word_verdicts(fitness, more),
        _context(fitness, more),
        *_meaning_verdicts(fitness, more),
        *_picture_verdicts(fitness),
    ]


def judge_images(num_bad: int, num_drawn: int) -> Verdict:
    """Return the verdict on the images themselves."""
    share = num_bad / num_drawn
    level: Level = "good" if not num_bad else ("look" if share <= 0.1 else "bad")
    text, advice = "all can be read", ""
    if num_bad:
        text = f"{num_bad} of {num_drawn} images drawn ({percent(share)}) cannot be read"
        advice = (
            f"repair or remove them: `beit tokenize` stops when more than {percent(TokenizeConfig().bad_sample_budget)}"
            " of all images are unusable (bad_sample_budget)"
        )
    rule = "good if every image drawn can be read, bad above 10 % (arbitrary)"
    return Verdict(key="images", title="Images", level=level, text=text, advice=advice, rule=rule)


def _verdict(key: str, value: float, text: str, *, advice: str = "", level: Level | None = None) -> Verdict:
    """Apply a rule; `advice` and `level` overrule its own."""
    rule = RULES[key]
    level = level or rule.level(value)
    advice = "" if level == "good" else advice or rule.advice
    return Verdict(key=key, title=rule.title, level=level, text=text, advice=advice, rule=rule.as_text())


def _usage(fitness: Fitness, more: str) -> Verdict:
    words, vocab_size = fitness.tokens.words, fitness.tokenizer.vocab_size
    unused = vocab_size - words.words_used
    text = (
        f"{percent(unused / vocab_size)} of the vocabulary ({unused:,} of {vocab_size:,} words) never occurs in "
        f"{words.num_tokens:,} tokens; the chance that one more token is a new word is "
        f"{percent(words.unseen_probability)}"
    )
    if not unused:
        text = f"all {vocab_size:,} words occur in {words.num_tokens:,} tokens"
    share = words.words_used / words.expected_words_used
    if words.unseen_probability > MAX_NEW_WORD_PROBABILITY and RULES["usage"].level(share) != "good":
        text += ", so more images would show more words"
        return _verdict("usage", share, text, advice=more, level="look")
    return _verdict("usage", share, text)


def _measure_more(num_views: int, num_in_source: int) -> str:
    """Say how to measure more images than these, of as many as there are."""
    if num_views >= num_in_source:
        return f"measure more images before judging: all {num_in_source} of SOURCE are, so name another one"
    wanted = 2 * num_views
    number = f"{wanted} or more" if wanted < num_in_source else f"{num_in_source}, all of SOURCE"
    return f"measure more images before judging (--images {number})"


def _word_verdicts(fitness: Fitness, more: str) -> Iterator[Verdict]:
    words = fitness.tokens.words
    share = words.perplexity / fitness.tokenizer.vocab_size
    text = (
        f"the tokens are as diverse as {words.perplexity:,.0f} equally frequent words ({percent(share)} of the "
        f"vocabulary); the commonest word makes up {percent(words.commonest_share)}"
    )
    rule = RULES["balance"]
    is_even = rule.level(words.perplexity / words.expected_words_used) == "good"  # as far as so few tokens can show it
    if words.unseen_probability > MAX_NEW_WORD_PROBABILITY and is_even and rule.level(share) != "good":
        text += f"; {words.num_tokens:,} tokens cannot show many more"
        yield _verdict("balance", share, text, advice=more, level="look")
    else:
        yield _verdict("balance", share, text)
    difference = fitness.tokens.positions.border_bits - fitness.tokens.positions.inner_bits
    side = "less" if difference < 0 else "more"
    yield _verdict("border", abs(difference), f"border tokens carry {abs(difference):.2f} bits {side} than inner ones")
    pairs = fitness.tokens.neighbours
    text = (
        f"{percent(pairs.left_share)} of the tokens repeat their left neighbour and {percent(pairs.up_share)} the "
        f"upper one, where chance gives {percent(pairs.chance)}"
    )
    yield _verdict("copies", max(pairs.left_share, pairs.up_share), text)


def _context(fitness: Fitness, more: str) -> Verdict:
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
        advice = more
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


def _meaning_verdicts(fitness: Fitness, more: str) -> Iterator[Verdict]:
    found = fitness.agreement
    kept = found.above_chance["all"]
    text = (
        f"mirrored, in other colours and {found.shift_px} px further, {percent(found.equal_shares['all'])} of the "
        f"tokens are the same word, where chance gives {percent(found.chance)}; {found.kept_bits:.2f} of a token's "
        f"{fitness.tokens.words.entropy_bits:.2f} bits are kept"
    )
    yield _verdict("agreement", kept, text)
    if fitness.num_labelled:
        yield _classes(fitness, more)


def _classes(fitness: Fitness, measure_more: str) -> Verdict:
    """Judge what words say about the class of an image, against guessing and against mean colours."""
    found, advice = fitness.classes, ""
    level: Level = "look"
    if found is None:
        text = f"too few of the {fitness.num_labelled} labelled images measured have a class in common"
        advice = measure_more
    else:
        text = (
            f"the words of an image tell its class for {percent(found.accuracy)} of {found.num_images:,} images "
            f"(standard error {percent(found.standard_error)}), mean colours for {percent(found.colours_accuracy)}, "
            f"the commonest of {found.num_classes:,} classes for {percent(found.commonest_share)}"
        )
        more = found.accuracy - found.commonest_share, found.accuracy - found.colours_accuracy
        is_above = more[0] >= CERTAIN * found.standard_error, more[1] >= CERTAIN * found.difference_error
        if all(is_above):
            level = "good"
        elif found.num_images < ENOUGH_LABELLED:
            advice = measure_more
        elif is_above[0]:
            advice = (
                "words that say no more than colours suffice where pixels are what counts; words from a teacher say "
                "more: beit tokenizer train SOURCE OUT --teacher ENCODER"
            )
        else:
            level = "bad"
            advice = "these words do not follow what the labels are about; prefer a tokenizer with a higher share here"
    rule = (
        f"good if words beat the commonest class and mean colours by {CERTAIN:g} standard errors, bad if not even the "
        f"commonest class on {ENOUGH_LABELLED:,} images or more; a usual bound of chance"
    )
    return Verdict(key="classes", title="Classes of the images", level=level, text=text, advice=advice, rule=rule)


def _picture_verdicts(fitness: Fitness) -> Iterator[Verdict]:
    if (found := fitness.reconstruction) is not None and not fitness.tokenizer.paints_averages:
        text = (
            f"reconstructs {abs(found.psnr_gain):.1f} dB {'better' if found.psnr_gain >= 0 else 'worse'} than the mean "
            f"colour of each square ({found.psnr:.1f} against {found.block_mean_psnr:.1f} dB; SSIM {found.ssim:.2f} "
            f"against {found.block_mean_ssim:.2f})"
        )
        yield _verdict("reconstruction", found.psnr_gain, text)
    factor, stability = fitness.tokenizer.downsampling, fitness.stability
    shares = {shift.shift_px: shift.equal_share for shift in stability.shifts}
    yield _verdict("shift", shares[1], f"a shift of one pixel changes {percent(1.0 - shares[1])} of the tokens")
    text = f"shifted by one whole token ({factor} px), {percent(shares[factor])} of the tokens move along unchanged"
    yield _verdict("whole_shift", shares[factor], text)
    text = f"mild JPEG compression changes {percent(1.0 - stability.jpeg_equal_share)} of the tokens"
    yield _verdict("jpeg", stability.jpeg_equal_share, text)
    kept = stability.dtype_equal_shares
    worst = min(kept, key=lambda dtype: kept[dtype])
    text = ", ".join(f"{percent(share)} of the tokens in {dtype}" for dtype, share in kept.items())
    advice = f'tokenize in float32 (--set dtype="float32"), not in {worst}'
    yield _verdict("precision", kept[worst], f"the same word as in float32 for {text}", advice=advice)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Two thresholds for one number. Where `good` is above `bad`, more is better."""

    title: str
    """Name on the page."""
    good: float
    """From here on all is well."""
    bad: float
    """From here on something is wrong; between the two, somebody should look."""
    what: str
    """The number, in words; completes "good if ..."."""
    unit: str = "%"
    """"%", "dB" or "bits"; shares are written in percent."""
    origin: str
    """Where the thresholds come from."""
    advice: str = ""
    """What to do where it is not good, unless the finding itself tells."""

    def level(self, value: float) -> Level:
        """Judge a number."""
        sign = 1.0 if self.good > self.bad else -1.0
        if sign * value >= sign * self.good:
            return "good"
        return "bad" if sign * value < sign * self.bad else "look"

    def as_text(self) -> str:
        """Spell the rule out."""
        scale = 100.0 if self.unit == "%" else 1.0
        more = self.good > self.bad
        return (
            f"good if {self.what} is at {'least' if more else 'most'} {scale * self.good:g} {self.unit}, bad "
            f"{'below' if more else 'above'} {scale * self.bad:g} {self.unit}; {self.origin}"
        )


RULES = {
    "usage": Rule(
        title="Use of the vocabulary",
        good=0.9,
        bad=0.6,
        what="the share of words used, of those that evenly used words would show in as many tokens,",
        origin="arbitrary; measured: 99.5 % for mini",
        advice="words that never occur teach nothing and cost a row of the prediction head each: train with a smaller "
        "vocab_size, on images like these, or, a dVAE, with a larger objective.usage_weight",
    ),
    "balance": Rule(
        title="Balance of the words",
        good=0.5,
        bad=0.2,
        what="the perplexity, as a share of the vocabulary,",
        origin="arbitrary; measured: 82 % for mini",
        advice="a few words cover most of the pictures, so pre-training can score by guessing them: train on images "
        "like these, or, a dVAE, with a larger objective.usage_weight",
    ),
    "border": Rule(
        title="Border of the picture",
        good=0.5,
        bad=1.5,
        unit="bits",
        what="the difference in entropy between border and inner tokens",
        origin="arbitrary; measured: 0.19 bits for mini",
        advice="the tokenizer sees the edge of the picture rather than its content there: look at the map; padding, "
        "frames or black bars in the images are the usual causes",
    ),
    "copies": Rule(
        title="Copies of neighbours",
        good=0.25,
        bad=0.5,
        what="the share of tokens that repeat a neighbour",
        origin="arbitrary; measured: 8 % for mini",
        advice="large plain areas, or words too coarse for these images: pre-training will be rewarded for copying; "
        "mask larger blocks, use larger tokens, or a larger vocabulary",
    ),
    "agreement": Rule(
        title="Same scene, same words",
        good=0.2,
        bad=0.02,
        what="the share of tokens that stay, above chance,",
        origin="arbitrary; measured: 5 % for mini, whose words are made to be painted",
        advice="the words follow colours, sides or the place of the grid, not what is shown: right for painting, "
        "while words made from an encoder, or from a better one, keep more bits (beit tokenizer train SOURCE OUT "
        "--teacher ENCODER)",
    ),
    "reconstruction": Rule(
        title="Reconstruction",
        good=1.0,
        bad=0.0,
        unit="dB",
        what="the distance to the mean colour of each square",
        origin="0 dB needs no learning (but 24 bits per token); 1 dB is arbitrary; measured: 2.3 dB for mini",
        advice="the words carry little more than colour here: train longer, with more words, or on images like these; "
        "look at the worst pictures below",
    ),
    "shift": Rule(
        title="Shift by one pixel",
        good=0.4,
        bad=0.15,
        what="the share of tokens that stay",
        origin="arbitrary; measured: 45 % for mini",
        advice="what a token is depends on where the grid happens to lie, and pre-training cannot predict that: prefer "
        "a tokenizer with a higher share here, or larger tokens",
    ),
    "whole_shift": Rule(
        title="Shift by one token",
        good=0.75,
        bad=0.5,
        what="the share of tokens that move along",
        origin="arbitrary; measured: 81 % for mini",
        advice="the rest depends on how far the picture's edge is away: the tokenizer looks far, or pads badly; larger "
        "views have less edge",
    ),
    "jpeg": Rule(
        title="JPEG re-encoding",
        good=0.75,
        bad=0.5,
        what="the share of tokens that stay",
        origin="arbitrary; measured: 87 % for mini",
        advice="words hang on detail that nobody sees: expect noisy targets from images that were saved more than once",
    ),
    "precision": Rule(
        title="Number formats",
        good=0.95,
        bad=0.9,
        what="the share of tokens that stay",
        origin="`beit verify --audit` alarms below 90 %; measured: 98 % for mini in bfloat16",
    ),
}
"""By their names in the JSON."""

"""The table of a fitness report: one row per number, with its format, its direction and its meaning.

The terminal, the page and the comparison of tokenizers all show these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from beit.common.pages.tables import aligned
from beit.tokenize.fitness.measure import Fitness
from beit.tokenize.fitness.stability import SHIFTS_PX
from beit.tokenize.fitness.verdicts import percent

ABSENT = "-"
"""What a row shows for a tokenizer without that number."""
BEST = " *"
"""Marks the best value of a row on the terminal."""


@dataclass(frozen=True, slots=True)
class Row:
    """One number of every tokenizer."""

    label: str
    """Name."""
    value: Callable[[Fitness], float | None]
    """The number, for ranking; None where a tokenizer has none."""
    text: Callable[[Fitness, float], str]
    """The number, for reading."""
    meaning: str
    """One sentence."""
    is_merit: bool = False
    """Whether more is better; else neither is."""
    section: str = ""
    """Heading it stands under."""

    def show(self, fitness: Fitness) -> str:
        """Return the cell of one tokenizer."""
        value = self.value(fitness)
        return ABSENT if value is None else self.text(fitness, value)

    def best(self, many: Sequence[Fitness]) -> set[int]:
        """Return which tokenizers have the best value: none if all show the same, or if no direction is better."""
        cells = [self.show(fitness) for fitness in many]
        values = [(index, value) for index, one in enumerate(many) if (value := self.value(one)) is not None]
        if not self.is_merit or len(values) < 2 or len({cells[index] for index, _ in values}) == 1:
            return set()
        shown = cells[max(values, key=lambda found: found[1])[0]]
        return {index for index, _ in values if cells[index] == shown}


def _as(form: str) -> Callable[[Fitness, float], str]:
    """Return what writes a number in a form of `str.format`."""
    return lambda fitness, value: form.format(value)


def _share(fitness: Fitness, value: float) -> str:
    return percent(value)


def _rate(fitness: Fitness, value: float) -> str:
    return f"{value:,.0f}/s" if value >= 10 else f"{value:.2g}/s"


def _of_vocabulary(fitness: Fitness, value: float) -> str:
    return f"{value:,.0f} ({percent(value / fitness.tokenizer.vocab_size)})"


def _of_bits(fitness: Fitness, value: float) -> str:
    bits = fitness.tokens.context.unigram_bits
    return f"{value:.2f} bits ({percent(value / bits)})" if bits else f"{value:.2f} bits"


def _shifted(shift_px: int | None) -> Callable[[Fitness], float | None]:
    """Return what finds the share of words that stay at a shift under the grid; None is a shift by one token."""

    def find(fitness: Fitness) -> float | None:
        wanted = shift_px or fitness.tokenizer.downsampling
        shares = {shift.shift_px: shift for shift in fitness.stability.shifts}
        found = shares.get(wanted)
        return None if found is None or (shift_px is not None and found.is_whole_tokens) else found.equal_share

    return find


def _pixels(name: str) -> Callable[[Fitness], float | None]:
    return lambda f: None if f.reconstruction is None else float(getattr(f.reconstruction, name))


_COUNT, _BITS, _DECIBEL, _SIMILARITY = _as("{:,.0f}"), _as("{:.2f} bits"), _as("{:.2f} dB"), _as("{:.3f}")
_SECTIONS = {
    "Words": (
        Row("vocabulary", lambda f: f.tokenizer.vocab_size, _COUNT, "Words the tokenizer has; BEiT's has 8192."),
        Row(
            "pixels per token",
            lambda f: f.tokenizer.downsampling,
            _as("{0:.0f} x {0:.0f}"),
            "The square of the view that one token stands for.",
        ),
        Row(
            "words used",
            lambda f: f.tokens.words.words_used,
            _of_vocabulary,
            "Different words among the tokens of all views.",
        ),
        Row(
            "expected if even",
            lambda f: f.tokens.words.expected_words_used,
            _COUNT,
            "Different words that equally frequent words would show in so few tokens; judge the row above by it.",
        ),
        Row(
            "new word next",
            lambda f: f.tokens.words.unseen_probability,
            _share,
            "Chance that one more token is a word not seen so far (Good-Turing); near 0, unused words are dead.",
        ),
        Row(
            "perplexity",
            lambda f: f.tokens.words.perplexity,
            _of_vocabulary,
            "Number of equally frequent words that would be as diverse; in brackets, as a share of the vocabulary.",
        ),
        Row(
            "entropy of a token",
            lambda f: f.tokens.words.entropy_bits,
            lambda f, value: f"{value:.2f} of {f.tokens.words.max_entropy_bits:.2f} bits",
            "Information per token if nothing else is known, against the most the vocabulary could carry.",
        ),
        Row(
            "bits per pixel",
            lambda f: f.bits_per_pixel,
            _as("{:.3f}"),
            "The same per pixel: the budget that reconstructions are bought with. Compare dB at equal budgets.",
        ),
    ),
    "Context": (
        Row(
            "equal to the left",
            lambda f: f.tokens.neighbours.left_share,
            _share,
            "Tokens that repeat the word on their left.",
        ),
        Row("equal to the upper", lambda f: f.tokens.neighbours.up_share, _share, "Tokens that repeat the word above."),
        Row(
            "equal by chance",
            lambda f: f.tokens.neighbours.chance,
            _share,
            "Equal pairs among tokens drawn at random.",
        ),
        Row(
            "bits without context",
            lambda f: f.tokens.context.unigram_bits,
            _BITS,
            "Bits per token from the frequency of words alone, on images the frequencies were not counted on.",
        ),
        Row(
            "bits with context",
            lambda f: f.tokens.context.context_bits,
            _BITS,
            "The same when the words to the left and above are known, by a small smoothed model.",
        ),
        Row(
            "told by neighbours",
            lambda f: f.tokens.context.gain_bits,
            _of_bits,
            "The difference. Near 0, masked prediction has nothing to go by; near all, it can copy. More images raise "
            "it, because the model knows more pairs of words.",
        ),
    ),
    "Pixels": (
        Row(
            "PSNR",
            _pixels("psnr"),
            _DECIBEL,
            "Closeness of the views painted from their tokens, mean over views.",
            is_merit=True,
        ),
        Row(
            "PSNR, mean colours",
            _pixels("block_mean_psnr"),
            _DECIBEL,
            "Of the views with every token's square replaced by its mean colour: what needs no learning.",
        ),
        Row("PSNR gained", _pixels("psnr_gain"), _as("{:+.2f} dB"), "The difference.", is_merit=True),
        Row(
            "SSIM",
            _pixels("ssim"),
            _SIMILARITY,
            "Structural similarity of luma, 1 for equal pictures; follows edges and texture rather than error.",
            is_merit=True,
        ),
        Row("SSIM, mean colours", _pixels("block_mean_ssim"), _SIMILARITY, "Of the mean colours."),
    ),
    "Stability": (
        *(
            Row(
                f"shift {shift} px",
                _shifted(shift),
                _share,
                f"Tokens that stay when the view moves by {shift} px under the grid.",
                is_merit=True,
            )
            for shift in SHIFTS_PX
        ),
        Row(
            "shift one token",
            _shifted(None),
            _share,
            "Tokens that move along when the view moves by a whole token; what is missing is the edge's doing.",
            is_merit=True,
        ),
        Row(
            "JPEG",
            lambda f: f.stability.jpeg_equal_share,
            _share,
            "Tokens that stay when the view is saved as JPEG of quality 90.",
            is_merit=True,
        ),
        *(
            Row(
                dtype,
                partial(lambda dtype, f: f.stability.dtype_equal_shares.get(dtype), dtype),
                _share,
                f"Tokens that {dtype} and float32 agree on.",
                is_merit=True,
            )
            for dtype in ("bfloat16", "float16")
        ),
    ),
    "Speed": (
        *(
            Row(
                f"encode, {dtype}",
                partial(lambda dtype, f: f.speed.encode_views_per_second.get(dtype), dtype),
                _rate,
                f"Views per second from pixels in memory to tokens, computed in {dtype}.",
                is_merit=True,
            )
            for dtype in ("float32", "bfloat16", "float16")
        ),
        Row(
            "decode, float32",
            lambda f: f.speed.decode_views_per_second,
            _rate,
            "Views per second from tokens to pixels.",
            is_merit=True,
        ),
    ),
}
ROWS = tuple(replace(row, section=section) for section, rows in _SECTIONS.items() for row in rows)


def shown_rows(many: Sequence[Fitness]) -> list[Row]:
    """Return the rows that at least one tokenizer has a number for."""
    return [row for row in ROWS if any(row.value(fitness) is not None for fitness in many)]


def text_table(many: Sequence[Fitness], labels: Sequence[str]) -> str:
    """Lay the rows out for a terminal, one column per tokenizer; `BEST` marks the best where there are several."""
    lines = [] if len(many) == 1 else [["", *labels]]
    section = ""
    for row in shown_rows(many):
        if row.section != section:
            section = row.section
            lines.append([section])
        best = row.best(many)
        cells = [row.show(one) + (BEST if index in best else "  " if best else "") for index, one in enumerate(many)]
        lines.append([f"  {row.label}", *cells])
    return aligned(lines)

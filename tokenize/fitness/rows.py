"""The table of a fitness report: one row per number, with its format, its direction and its meaning.

The terminal, the page and the comparison of tokenizers all show these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from beit.common.pages.tables import aligned
from beit.tokenize.fitness.measure import Fitness
from beit.tokenize.fitness.stability import SHIFTS_PX
from beit.tokenize.fitness.verdicts import percent

ABSENT = "-"
"""What a row shows for a tokenizer without that number."""
BEST = " *"
"""Marks the best value of a row on the terminal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One number of every tokenizer."""

    section: str
    """Heading it stands under."""
    label: str
    """Name."""
    value: Callable[[Fitness], float | None]
    """The number, for ranking; None where a tokenizer has none."""
    text: Callable[[Fitness, float], str]
    """The number, for reading."""
    better: Literal["high", "low"] | None = None
    """Which values are better; None where neither is."""
    meaning: str
    """One sentence."""

    def show(self, fitness: Fitness) -> str:
        """Return the cell of one tokenizer."""
        value = self.value(fitness)
        return ABSENT if value is None else self.text(fitness, value)

    def best(self, many: Sequence[Fitness]) -> set[int]:
        """Return which tokenizers have the best value: none if all show the same, or if no direction is better."""
        cells = [self.show(fitness) for fitness in many]
        values = [(index, value) for index, one in enumerate(many) if (value := self.value(one)) is not None]
        if self.better is None or len(values) < 2 or len({cells[index] for index, _ in values}) == 1:
            return set()
        extreme = (max if self.better == "high" else min)(value for _, value in values)
        shown = next(cells[index] for index, value in values if value == extreme)
        return {index for index, _ in values if cells[index] == shown}


def _bits(fitness: Fitness, value: float) -> str:
    return f"{value:.2f} bits"


def _share(fitness: Fitness, value: float) -> str:
    return percent(value)


def _decibel(fitness: Fitness, value: float) -> str:
    return f"{value:.2f} dB"


def _rate(fitness: Fitness, value: float) -> str:
    return f"{value:,.0f}/s" if value >= 10 else f"{value:.2g}/s"


def _count(fitness: Fitness, value: float) -> str:
    return f"{value:,.0f}"


def _shifted(shift_px: int) -> Callable[[Fitness], float | None]:
    """Return what finds the share of words that stay at a shift that is no multiple of the tokens' side."""

    def find(fitness: Fitness) -> float | None:
        for shift in fitness.stability.shifts:
            if shift.shift_px == shift_px and not shift.is_whole_tokens:
                return shift.equal_share
        return None

    return find


def _shifted_by_token(fitness: Fitness) -> float:
    shares = {shift.shift_px: shift.equal_share for shift in fitness.stability.shifts}
    return shares[fitness.tokenizer.downsampling]


def _pixels(name: str) -> Callable[[Fitness], float | None]:
    def find(fitness: Fitness) -> float | None:
        return None if fitness.reconstruction is None else float(getattr(fitness.reconstruction, name))

    return find


def _dtype_share(dtype: str) -> Callable[[Fitness], float | None]:
    return lambda fitness: fitness.stability.dtype_equal_shares.get(dtype)


def _encode_rate(dtype: str) -> Callable[[Fitness], float | None]:
    return lambda fitness: fitness.speed.encode_views_per_second.get(dtype)


ROWS = (
    Row(
        section="Words",
        label="vocabulary",
        value=lambda f: f.tokenizer.vocab_size,
        text=_count,
        meaning="Words the tokenizer has; BEiT's has 8192.",
    ),
    Row(
        section="Words",
        label="pixels per token",
        value=lambda f: f.tokenizer.downsampling,
        text=lambda f, value: f"{value:.0f} x {value:.0f}",
        meaning="The square of the view that one token stands for.",
    ),
    Row(
        section="Words",
        label="words used",
        value=lambda f: f.tokens.words.words_used,
        text=lambda f, value: f"{value:,.0f} ({percent(value / f.tokenizer.vocab_size)})",
        meaning="Different words among the tokens of all views.",
    ),
    Row(
        section="Words",
        label="expected if even",
        value=lambda f: f.tokens.words.expected_words_used,
        text=_count,
        meaning="Different words that equally frequent words would show in so few tokens; judge the row above by it.",
    ),
    Row(
        section="Words",
        label="new word next",
        value=lambda f: f.tokens.words.unseen_probability,
        text=_share,
        meaning="Chance that one more token is a word not seen so far (Good-Turing); near 0, unused words are dead.",
    ),
    Row(
        section="Words",
        label="perplexity",
        value=lambda f: f.tokens.words.perplexity,
        text=lambda f, value: f"{value:,.0f} ({percent(value / f.tokenizer.vocab_size)})",
        meaning="Number of equally frequent words that would be as diverse; in brackets, as a share of the vocabulary.",
    ),
    Row(
        section="Words",
        label="entropy of a token",
        value=lambda f: f.tokens.words.entropy_bits,
        text=lambda f, value: f"{value:.2f} of {f.tokens.words.max_entropy_bits:.2f} bits",
        meaning="Information per token if nothing else is known, against the most the vocabulary could carry.",
    ),
    Row(
        section="Words",
        label="bits per pixel",
        value=lambda f: f.bits_per_pixel,
        text=lambda f, value: f"{value:.3f}",
        meaning="The same per pixel: the budget that reconstructions are bought with. Compare dB at equal budgets.",
    ),
    Row(
        section="Context",
        label="equal to the left",
        value=lambda f: f.tokens.neighbours.left_share,
        text=_share,
        meaning="Tokens that repeat the word on their left.",
    ),
    Row(
        section="Context",
        label="equal to the upper",
        value=lambda f: f.tokens.neighbours.up_share,
        text=_share,
        meaning="Tokens that repeat the word above.",
    ),
    Row(
        section="Context",
        label="equal by chance",
        value=lambda f: f.tokens.neighbours.chance,
        text=_share,
        meaning="Equal pairs among tokens drawn at random.",
    ),
    Row(
        section="Context",
        label="bits without context",
        value=lambda f: f.tokens.context.unigram_bits,
        text=_bits,
        meaning="Bits per token from the frequency of words alone, on images the frequencies were not counted on.",
    ),
    Row(
        section="Context",
        label="bits with context",
        value=lambda f: f.tokens.context.context_bits,
        text=_bits,
        meaning="The same when the words to the left and above are known, by a small smoothed model.",
    ),
    Row(
        section="Context",
        label="told by neighbours",
        value=lambda f: f.tokens.context.gain_bits,
        text=lambda f, value: (
            f"{value:.2f} bits ({percent(value / f.tokens.context.unigram_bits)})"
            if f.tokens.context.unigram_bits
            else f"{value:.2f} bits"
        ),
        meaning="The difference. Near 0, masked prediction has nothing to go by; near all, it can copy. More images "
        "raise it, because the model knows more pairs of words.",
    ),
    Row(
        section="Pixels",
        label="PSNR",
        value=_pixels("psnr"),
        text=_decibel,
        better="high",
        meaning="Closeness of the views painted from their tokens, mean over views.",
    ),
    Row(
        section="Pixels",
        label="PSNR, mean colours",
        value=_pixels("block_mean_psnr"),
        text=_decibel,
        meaning="Of the views with every token's square replaced by its mean colour: what needs no learning.",
    ),
    Row(
        section="Pixels",
        label="PSNR gained",
        value=_pixels("psnr_gain"),
        text=lambda f, value: f"{value:+.2f} dB",
        better="high",
        meaning="The difference.",
    ),
    Row(
        section="Pixels",
        label="SSIM",
        value=_pixels("ssim"),
        text=lambda f, value: f"{value:.3f}",
        better="high",
        meaning="Structural similarity of luma, 1 for equal pictures; follows edges and texture rather than error.",
    ),
    Row(
        section="Pixels",
        label="SSIM, mean colours",
        value=_pixels("block_mean_ssim"),
        text=lambda f, value: f"{value:.3f}",
        meaning="Of the mean colours.",
    ),
    *(
        Row(
            section="Stability",
            label=f"shift {shift} px",
            value=_shifted(shift),
            text=_share,
            better="high",
            meaning=f"Tokens that stay when the view moves by {shift} px under the grid.",
        )
        for shift in SHIFTS_PX
    ),
    Row(
        section="Stability",
        label="shift one token",
        value=_shifted_by_token,
        text=_share,
        better="high",
        meaning="Tokens that move along when the view moves by a whole token; what is missing is the edge's doing.",
    ),
    Row(
        section="Stability",
        label="JPEG",
        value=lambda f: f.stability.jpeg_equal_share,
        text=_share,
        better="high",
        meaning="Tokens that stay when the view is saved as JPEG of quality 90.",
    ),
    *(
        Row(
            section="Stability",
            label=dtype,
            value=_dtype_share(dtype),
            text=_share,
            better="high",
            meaning=f"Tokens that {dtype} and float32 agree on.",
        )
        for dtype in ("bfloat16", "float16")
    ),
    *(
        Row(
            section="Speed",
            label=f"encode, {dtype}",
            value=_encode_rate(dtype),
            text=_rate,
            better="high",
            meaning=f"Views per second from pixels in memory to tokens, computed in {dtype}.",
        )
        for dtype in ("float32", "bfloat16", "float16")
    ),
    Row(
        section="Speed",
        label="decode, float32",
        value=lambda f: f.speed.decode_views_per_second,
        text=_rate,
        better="high",
        meaning="Views per second from tokens to pixels.",
    ),
)


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

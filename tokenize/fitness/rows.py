"""The table of a fitness report: one row per number, with its format, its direction and its meaning.

The terminal, the page and the comparison of tokenizers all show these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from beit.common.pages.numbers import percent
from beit.common.pages.tables import aligned
from beit.tokenize.fitness.measure import Fitness
from beit.tokenize.fitness.stability import SHIFTS_PX

ABSENT = "-"
"""What a row shows for a tokenizer without that number."""
BEST = " *"
"""Marks the best value of a row on the terminal."""


@dataclass(frozen=True, slots=True)
class Row:
    """One number of every tokenizer."""

    value: Callable[[Fitness], float | None]
    """The number, for ranking; None where a tokenizer has none."""
    text: Callable[[Fitness, float], str]
    """The number, for reading."""
    meaning: str
    """One sentence."""
    is_merit: bool = False
    """Whether more is better; else neither is."""
    is_of_pixels: bool = False
    """Whether it compares only between tokenizers that saw the views at the same side."""
    section: str = ""
    """Heading it stands under."""
    label: str = ""
    """Name."""

    def show(self, fitness: Fitness) -> str:
        """Return the cell of one tokenizer."""
        value = self.value(fitness)
        return ABSENT if value is None else self.text(fitness, value)

    def best(self, many: Sequence[Fitness]) -> set[int]:
        """Return which tokenizers have the best value: none if all show the same, or if no direction is better."""
        cells = [self.show(fitness) for fitness in many]
        values = [(index, value) for index, one in enumerate(many) if (value := self.value(one)) is not None]
        if self.is_of_pixels and len({fitness.view_size for fitness in many}) > 1:
            return set()
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


def _shifted(shift_px: int) -> Callable[[Fitness], float | None]:
    """Return what finds the share of words that stay at a shift under the grid."""

    def find(fitness: Fitness) -> float | None:
        shares = {found.shift_px: found.equal_share for found in fitness.stability.shifts if not found.is_whole_tokens}
        return shares.get(shift_px)

    return find


def _shifted_by_token(fitness: Fitness) -> float | None:
    shares = {found.shift_px: found.equal_share for found in fitness.stability.shifts}
    return shares.get(fitness.tokenizer.downsampling)


def _above_chance(change: str) -> Callable[[Fitness], float]:
    return lambda fitness: fitness.agreement.above_chance[change]


def _of_entropy(fitness: Fitness, value: float) -> str:
    return f"{value:.2f} of {fitness.tokens.words.entropy_bits:.2f} bits"


def _class_score(name: str) -> Callable[[Fitness], float | None]:
    return lambda f: None if f.classes is None else float(getattr(f.classes, name))


def _with_error(fitness: Fitness, value: float) -> str:
    assert fitness.classes is not None  # else there is no value
    return f"{100 * value:.1f} +- {100 * fitness.classes.standard_error:.1f} %"


def _pixels(name: str) -> Callable[[Fitness], float | None]:
    return lambda f: None if f.reconstruction is None else float(getattr(f.reconstruction, name))


_COUNT, _BITS, _DECIBEL, _SIMILARITY = _as("{:,.0f}"), _as("{:.2f} bits"), _as("{:.2f} dB"), _as("{:.3f}")
_merit = partial(Row, is_merit=True)
_pixel_merit = partial(Row, is_merit=True, is_of_pixels=True)
_SECTIONS = {
    "Words": {
        "vocabulary": Row(lambda f: f.tokenizer.vocab_size, _COUNT, "Words the tokenizer has; BEiT's has 8192."),
        "pixels per token": Row(
            lambda f: f.tokenizer.downsampling,
            _as("{0:.0f} x {0:.0f}"),
            "The square of the view that one token stands for.",
        ),
        "words used": Row(
            lambda f: f.tokens.words.words_used, _of_vocabulary, "Different words among the tokens of all views."
        ),
        "expected if even": Row(
            lambda f: f.tokens.words.expected_words_used,
            _COUNT,
            "Different words that equally frequent words would show in so few tokens; judge the row above by it.",
        ),
        "new word next": Row(
            lambda f: f.tokens.words.unseen_probability,
            _share,
            "Chance that one more token is a word not seen so far (Good-Turing); near 0, unused words are dead.",
        ),
        "perplexity": Row(
            lambda f: f.tokens.words.perplexity,
            _of_vocabulary,
            "Number of equally frequent words that would be as diverse; in brackets, as a share of the vocabulary.",
        ),
        "entropy of a token": Row(
            lambda f: f.tokens.words.entropy_bits,
            lambda f, value: f"{value:.2f} of {f.tokens.words.max_entropy_bits:.2f} bits",
            "Information per token if nothing else is known, against the most the vocabulary could carry.",
        ),
        "bits per pixel": Row(
            lambda f: f.bits_per_pixel,
            _as("{:.3f}"),
            "The same per pixel: the budget that reconstructions are bought with. Compare dB at equal budgets.",
        ),
    },
    "Context": {
        "equal to the left": Row(
            lambda f: f.tokens.neighbours.left_share, _share, "Tokens that repeat the word on their left."
        ),
        "equal to the upper": Row(lambda f: f.tokens.neighbours.up_share, _share, "Tokens that repeat the word above."),
        "equal by chance": Row(
            lambda f: f.tokens.neighbours.chance, _share, "Equal pairs among tokens drawn at random."
        ),
        "bits without context": Row(
            lambda f: f.tokens.context.unigram_bits,
            _BITS,
            "Bits per token from the frequency of words alone, on images the frequencies were not counted on.",
        ),
        "bits with context": Row(
            lambda f: f.tokens.context.context_bits,
            _BITS,
            "The same when the words to the left and above are known, by a small smoothed model.",
        ),
        "told by neighbours": Row(
            lambda f: f.tokens.context.gain_bits,
            _of_bits,
            "The difference. Near 0, masked prediction has nothing to go by; near all, it can copy. More images raise "
            "it, because the model knows more pairs of words.",
        ),
    },
    "Meaning": {
        "same when mirrored": _merit(
            _above_chance("mirror"),
            _share,
            "Tokens that keep their word when the view is mirrored, above chance: 0 % is what the frequencies of the "
            "words give by themselves.",
        ),
        "same in other colours": _merit(
            _above_chance("colours"), _share, "The same when colours are drawn anew, as pre-training draws them."
        ),
        "same after all": _merit(
            _above_chance("all"),
            _share,
            "Both at once, and a quarter of a token to the side: the scene is the same, and so should its words be.",
        ),
        "bits kept": _merit(
            lambda f: f.agreement.kept_bits,
            _of_entropy,
            "What the word after all that tells about the word before, at least; few words have few bits to keep.",
        ),
        "class told by words": _merit(
            _class_score("accuracy"),
            _with_error,
            "Images whose class a linear classifier tells from how often each word occurs, fitted on all others.",
        ),
        "class told by colours": Row(
            _class_score("colours_accuracy"),
            _share,
            "The same from mean colours, cut into as many as there are words: what needs no learning.",
        ),
        "commonest class": Row(_class_score("commonest_share"), _share, "The same by guessing the commonest class."),
    },
    "Pixels": {
        "PSNR": _pixel_merit(
            _pixels("psnr"), _DECIBEL, "Closeness of the views painted from their tokens, mean over views."
        ),
        "PSNR, mean colours": Row(
            _pixels("block_mean_psnr"),
            _DECIBEL,
            "Of the views with every token's square replaced by its mean colour: what needs no learning.",
        ),
        "PSNR gained": _pixel_merit(_pixels("psnr_gain"), _as("{:+.2f} dB"), "The difference."),
        "SSIM": _pixel_merit(
            _pixels("ssim"),
            _SIMILARITY,
            "Structural similarity of luma, 1 for equal pictures; follows edges and texture rather than error.",
        ),
        "SSIM, mean colours": Row(_pixels("block_mean_ssim"), _SIMILARITY, "Of the mean colours."),
    },
    "Stability": {
        **{
            f"shift {shift} px": _pixel_merit(
                _shifted(shift), _share, f"Tokens that stay when the view moves by {shift} px under the grid."
            )
            for shift in SHIFTS_PX
        },
        "shift one token": _merit(
            _shifted_by_token,
            _share,
            "Tokens that move along when the view moves by a whole token; what is missing is the edge's doing.",
        ),
        "JPEG": _merit(
            lambda f: f.stability.jpeg_equal_share,
            _share,
            "Tokens that stay when the view is saved as JPEG of quality 90.",
        ),
        **{
            dtype: _merit(
                partial(lambda dtype, f: f.stability.dtype_equal_shares.get(dtype), dtype),
                _share,
                f"Tokens that {dtype} and float32 agree on.",
            )
            for dtype in ("bfloat16", "float16")
        },
    },
    "Speed": {
        **{
            f"encode, {dtype}": _merit(
                partial(lambda dtype, f: f.speed.encode_views_per_second.get(dtype), dtype),
                _rate,
                f"Views per second from pixels in memory to tokens, computed in {dtype}.",
            )
            for dtype in ("float32", "bfloat16", "float16")
        },
        "decode, float32": _merit(
            lambda f: f.speed.decode_views_per_second, _rate, "Views per second from tokens to pixels."
        ),
    },
}
ROWS = tuple(
    replace(row, section=section, label=label) for section, rows in _SECTIONS.items() for label, row in rows.items()
)


def shown_rows(many: Sequence[Fitness]) -> list[Row]:
    """Return the rows that at least one tokenizer has a number for."""
    return [row for row in ROWS if any(row.value(fitness) is not None for fitness in many)]


def text_table(many: Sequence[Fitness], labels: Sequence[str]) -> str:
    """Lay the rows out for a terminal, one column per tokenizer; `BEST` marks the best where there are several."""
    lines = [] if len(many) == 1 else [["", *labels]]
    for section, rows in groupby(shown_rows(many), key=lambda row: row.section):
        lines.append([section])
        for row in rows:
            best = row.best(many)
            marks = [BEST if index in best else "  " if best else "" for index in range(len(many))]
            lines.append([f"  {row.label}", *(row.show(one) + mark for one, mark in zip(many, marks, strict=True))])
    return aligned(lines)

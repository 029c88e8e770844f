"""A fitness report: what was measured, on what, and how it reads on a terminal and in a JSON file.

The page is `page.py`; making a report is `run.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from beit import __version__
from beit.common.pages.tables import folded
from beit.common.reading.bad_samples import BadSampleReport
from beit.common.storage.documents import Format
from beit.tokenize.fitness.measure import Fitness
from beit.tokenize.fitness.rows import text_table
from beit.tokenize.fitness.sheet import SheetRow
from beit.tokenize.fitness.verdicts import LEVEL_NAMES, Verdict

FORMAT = Format("beit-tokenizer-report", 1)
_BAD_SAMPLES_LISTED = 100
_LEVEL_WIDTH = 14


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSettings:
    """What decides the numbers, beside tokenizers and images."""

    num_images: int = 256
    """Images to draw, one view each."""
    view_size: int | None = None
    """Side of a view in px; None leaves it to the tokenizers."""
    seed: int = 0
    """Of images and views."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitnessReport:
    """One or several tokenizers on the same views."""

    source: str
    """As the user named it."""
    num_in_source: int
    """Images there."""
    num_drawn: int
    """Images drawn, unusable ones included."""
    bad_samples: list[BadSampleReport]
    """Of those, what cannot be used."""
    settings: ReportSettings
    """How it was measured."""
    labels: list[str]
    """Short name of each tokenizer."""
    fitness: list[Fitness]
    """Its numbers."""
    verdicts: list[list[Verdict]]
    """Its verdicts."""
    images_verdict: Verdict
    """On the images."""
    sheet: list[SheetRow]
    """Pictures; empty if no tokenizer can decode."""

    @property
    def num_measured(self) -> int:
        """Views measured."""
        return self.fitness[0].num_views

    @property
    def is_one_size(self) -> bool:
        """Whether all tokenizers saw the views at the same side."""
        return len({fitness.view_size for fitness in self.fitness}) == 1

    def describe(self) -> str:
        """Say in one line what was measured on what."""
        sizes = [f"{fitness.view_size} x {fitness.view_size} px" for fitness in self.fitness]
        size = sizes[0]
        if not self.is_one_size:
            size = ", ".join(f"{size} for {label}" for size, label in zip(sizes, self.labels, strict=True))
            size += f", {self.fitness[0].grid_size} x {self.fitness[0].grid_size} words"
        return (
            f"{self.num_measured:,} of {self.num_in_source:,} images from {self.source}, one view of {size} "
            f"each, drawn as `beit tokenize` draws them (random crop, flip and colours), seed {self.settings.seed}"
        )

    def describe_averages(self) -> str:
        """Say which tokenizers paint averages; empty where none does."""
        names = [label for label, one in zip(self.labels, self.fitness, strict=True) if one.tokenizer.paints_averages]
        if not names:
            return ""
        return (
            f"{', '.join(names)}: a word is painted as the average of the squares that had it. Such words are not "
            "made to be painted, so PSNR and SSIM tell how they follow pixels, and judge nothing"
        )

    def describe_bad(self) -> str:
        """Count the unusable images by reason."""
        counts = Counter(report.reason for report in self.bad_samples)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        return f"{len(self.bad_samples)} of {self.num_drawn} images drawn passed over: {reasons}"

    def as_text(self) -> str:
        """Return what a user sees on the terminal."""
        lines = [folded(self.describe()), ""]
        if len(self.fitness) == 1:
            facts = self.fitness[0].tokenizer
            lines = [f"tokenizer {facts.name}, fingerprint {facts.fingerprint[:12]}", *lines]
        lines += [text_table(self.fitness, self.labels), ""]
        lines += [folded(averages), ""] if (averages := self.describe_averages()) else []
        lines += _verdict_lines([self.images_verdict]) if self.images_verdict.level != "good" else []
        for label, verdicts in zip(self.labels, self.verdicts, strict=True):
            if len(self.fitness) == 1:
                lines += _verdict_lines(verdicts)
                continue
            worth_saying = [verdict for verdict in verdicts if verdict.level != "good"]
            good = len(verdicts) - len(worth_saying)
            lines += [f"{label}: {good} of {len(verdicts)} verdicts good", *_verdict_lines(worth_saying)]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the document of `--out`; its keys are described in docs/tokenizers.md."""
        return {
            **FORMAT.header(),
            "beit_version": __version__,
            "settings": {
                **asdict(self.settings),
                "view_size": self.fitness[0].view_size if self.is_one_size else None,
            },
            "images": {
                "source": self.source,
                "in_source": self.num_in_source,
                "drawn": self.num_drawn,
                "measured": self.num_measured,
                "unusable": {
                    "count": len(self.bad_samples),
                    "by_reason": dict(Counter(report.reason for report in self.bad_samples)),
                    "first": [report._asdict() for report in self.bad_samples[:_BAD_SAMPLES_LISTED]],
                },
                "verdict": asdict(self.images_verdict),
            },
            "tokenizers": [
                {**asdict(fitness), "bits_per_pixel": fitness.bits_per_pixel, "verdicts": [asdict(v) for v in verdicts]}
                for fitness, verdicts in zip(self.fitness, self.verdicts, strict=True)
            ],
        }


def _verdict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    lines = []
    for verdict in verdicts:
        head = LEVEL_NAMES[verdict.level].ljust(_LEVEL_WIDTH)
        lines.append(folded(f"{head}{verdict.title}: {verdict.text}", indent=" " * _LEVEL_WIDTH))
        if verdict.advice:
            lines.append(folded(f"{' ' * _LEVEL_WIDTH}-> {verdict.advice}", indent=" " * (_LEVEL_WIDTH + 3)))
    return lines

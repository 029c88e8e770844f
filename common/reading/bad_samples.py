"""Counting unusable samples and stopping when there are too many. Replacing them is `beit.common.reading.reader`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from beit.common.errors import InputError
from beit.common.images.formats import words_of

logger = logging.getLogger(__name__)

_KEYS_IN_MESSAGE = 5
_PARTS_OF_A_PART = 1e-7
"""Below what any sample is of an image, above what rounding adds up to."""


class BadSampleReport(NamedTuple):
    """One sample that could not be used; travels from the worker to the training process inside a batch."""

    sample_id: str
    reason: str
    detail: str
    share: float = 1.0
    """How much of an image that is, where samples are parts of one."""
    name: str = ""
    """What people are told of, once, where several samples stand for the same thing; by default the sample."""


def is_over(shares: float, allowed: int) -> bool:
    """Tell whether unusable images, summed up by their shares, are more than allowed; parts make no exact sum."""
    return shares > allowed + _PARTS_OF_A_PART


def in_images(shares: float) -> str:
    """Write how many images are unusable, with the places that parts of an image need."""
    if abs(shares - round(shares)) < _PARTS_OF_A_PART:
        return f"{round(shares):d}"
    return f"{shares:.1f}" if shares > 1 else f"{shares:.2g}"


class BadSampleLog:
    """The unusable samples a rank has met, each counted once however many epochs meet it.

    Args:
        num_samples: Of the data set; the budget is a share of it.
        budget: Allowed share, in [0, 1). Any budget above 0 allows at least one sample, so that a small set can have
            a bad one.
        setting: Name of the setting that holds the budget, for the error.
        unit: What `num_samples` counts: samples, or images of which samples are parts.
    """

    def __init__(
        self, num_samples: int, budget: float, *, setting: str = "reader.bad_sample_budget", unit: str = "samples"
    ) -> None:
        self._num_samples = num_samples
        self._budget = budget
        self._setting, self._unit = setting, unit
        self._seen: dict[str, str] = {}
        self._named: dict[str, str] = {}
        """Reason by what people are told of."""
        self._shares = 0.0
        self._needs: dict[str, str] = {}
        """What images of a format need whose library is missing, by reason."""

    def __repr__(self) -> str:
        return f"BadSampleLog({dict(self.counts)}, allowed={self.allowed})"

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def allowed(self) -> int:
        """Bad samples that the budget covers."""
        return max(1, int(self._budget * self._num_samples)) if self._budget > 0 else 0

    @property
    def counts(self) -> Counter[str]:
        """Different bad samples by reason."""
        return Counter(self._named.values())

    @property
    def is_over(self) -> bool:
        """Whether there are more than the budget covers."""
        return is_over(self._shares, self.allowed)

    def add(self, reports: Iterable[BadSampleReport]) -> None:
        """Count what a batch reports and log each sample at its first appearance; of a missing library, the first."""
        for report in reports:
            if report.sample_id in self._seen:
                continue
            self._seen[report.sample_id] = report.reason
            self._shares += report.share
            name = report.name or report.sample_id
            if name in self._named:
                continue
            self._named[name] = report.reason
            if report.reason in self._needs:
                continue
            more = ""
            if words := words_of(report.reason):
                self._needs[report.reason], more = words, "; more of these are counted, not named"
            logger.warning("sample %s cannot be used: %s (%s)%s", name, report.reason, report.detail, more)
        if self.is_over:
            raise InputError(self._message())

    def _message(self) -> str:
        first = ", ".join(f"{name} ({reason})" for name, reason in list(self._named.items())[:_KEYS_IN_MESSAGE])
        counts = self.counts
        needs = "".join(f"; {counts[reason]} {reason}: {detail}" for reason, detail in self._needs.items())
        amount = f"{in_images(self._shares)} of {self._num_samples} {self._unit}"
        return (
            f"{amount} cannot be used, but {self._setting} ({self._budget:g}) allows {self.allowed}; "
            f"first: {first}{needs}; repair or remove them, or raise the budget"
        )

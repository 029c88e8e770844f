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


class BadSampleReport(NamedTuple):
    """One sample that could not be used; travels from the worker to the training process inside a batch."""

    sample_id: str
    reason: str
    detail: str


class BadSampleLog:
    """The unusable samples a rank has met, each counted once however many epochs meet it.

    Args:
        num_samples: Of the data set; the budget is a share of it.
        budget: Allowed share, in [0, 1). Any budget above 0 allows at least one sample, so that a small set can have
            a bad one.
        setting: Name of the setting that holds the budget, for the error.
    """

    def __init__(self, num_samples: int, budget: float, *, setting: str = "reader.bad_sample_budget") -> None:
        self._num_samples = num_samples
        self._budget = budget
        self._setting = setting
        self._seen: dict[str, str] = {}
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
        return Counter(self._seen.values())

    def add(self, reports: Iterable[BadSampleReport]) -> None:
        """Count what a batch reports and log each sample at its first appearance; of a missing library, the first."""
        for report in reports:
            if report.sample_id in self._seen:
                continue
            self._seen[report.sample_id] = report.reason
            if report.reason in self._needs:
                continue
            more = ""
            if words := words_of(report.reason):
                self._needs[report.reason], more = words, "; more of these are counted, not named"
            logger.warning("sample %s cannot be used: %s (%s)%s", *report, more)
        if len(self) > self.allowed:
            raise InputError(self._message())

    def _message(self) -> str:
        first = ", ".join(f"{name} ({reason})" for name, reason in list(self._seen.items())[:_KEYS_IN_MESSAGE])
        counts = self.counts
        needs = "".join(f"; {counts[reason]} {reason}: {detail}" for reason, detail in self._needs.items())
        return (
            f"{len(self)} of {self._num_samples} samples cannot be used, but {self._setting} ({self._budget:g}) "
            f"allows {self.allowed}; first: {first}{needs}; repair or remove them, or raise the budget"
        )

"""A rule that settings, data and machine break together, or an advice they do not follow, with the way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from beit.common.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What would go wrong, in the words of the command that would say so."""

    what: str
    """Setting, value, rule."""
    way_out: str
    """What to do about it; empty where `what` says it."""
    is_fatal: bool
    """Whether the command refuses; else it warns."""

    def __str__(self) -> str:
        return f"{self.what}; {self.way_out}" if self.way_out else self.what

    @classmethod
    def of(cls, error: InputError) -> Problem:
        """Return what a refusal says: its message ends in the way out."""
        return cls._from(str(error), is_fatal=True)

    @classmethod
    def advice(cls, warning: str) -> Problem:
        """Return what a warning says."""
        return cls._from(warning, is_fatal=False)

    @classmethod
    def _from(cls, words: str, *, is_fatal: bool) -> Problem:
        what, _, way_out = words.rpartition("; ")
        return cls(what=what or way_out, way_out=way_out if what else "", is_fatal=is_fatal)


def problems_of(*checks: Callable[[], object]) -> tuple[Problem, ...]:
    """Run checks that refuse by an InputError, and return all that did."""
    found = []
    for check in checks:
        try:
            check()
        except InputError as error:
            found.append(Problem.of(error))
    return tuple(found)

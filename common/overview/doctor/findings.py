"""What a check finds: one line each, and how all of them are told, on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from beit.common.errors import InputError, RunFailed, printable
from beit.common.pages.numbers import count
from beit.common.storage.documents import Format

FORMAT = Format("beit-doctor", 1)
Level = Literal["ok", "warning", "fault"]
_LEVEL_COLUMNS, _TOPIC_COLUMNS = 7, 13


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    """What was looked at, in a word or two."""
    level: Level
    """A fault stops something that beit does; a warning makes it slow, or stops what few need."""
    what: str
    """What was found, in one line."""
    mend: str = ""
    """The command, or what else there is to do about it; empty where all is well."""

    def as_text(self) -> str:
        """Return the line a user sees."""
        text = f"{self.what}; mend: {self.mend}" if self.mend else self.what
        return printable(f"{self.level:<{_LEVEL_COLUMNS}}  {self.topic:<{_TOPIC_COLUMNS}}  {' '.join(text.split())}")


Check = Callable[[], Iterable[Finding]]


def well(topic: str, what: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(topic=topic, level="ok", what=what)


def warning(topic: str, what: str, mend: str) -> Finding:
    """Return a finding that makes something slow, or stops what few need."""
    return Finding(topic=topic, level="warning", what=what, mend=mend)


def fault(topic: str, what: str, mend: str) -> Finding:
    """Return a finding that stops something."""
    return Finding(topic=topic, level="fault", what=what, mend=mend)


def slow(topic: str, error: Exception, look: str = "") -> Finding:
    """Return the warning that something did not answer in time, which a busy machine alone may be the reason of.

    Args:
        topic: What was looked at.
        error: How long it was waited for.
        look: What may tell more.
    """
    mend = "beit doctor again when less runs here (top shows what does)"
    return warning(topic, f"slow, or it hangs: {error}", f"{mend}; {look}" if look else mend)


_CORRECT = "correct what it names"


def refused(topic: str, error: Exception, mend: str = _CORRECT) -> Finding:
    """Return the fault that an error of ours tells, whose message ends with the way out; `mend` where it has none."""
    what, _, way_out = str(error).rpartition("; ")
    return fault(topic, what, way_out) if what else fault(topic, way_out, mend)


def guarded(topic: str, check: Check, mend: str = _CORRECT) -> Iterator[Finding]:
    """Yield what a check finds; if it cannot even look, that is a fault, and the next check has its turn.

    Args:
        topic: Of that fault.
        check: What looks.
        mend: What to do where an error does not say it.
    """
    try:
        yield from check()
    except (InputError, RunFailed, OSError) as error:
        yield refused(topic, error, mend)
    except Exception as error:  # of a broken library or machine, which is what is looked for here
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield fault(topic, f"could not be looked at ({reason})", "mend what it names, or report it as a bug of beit")


def are_faults(findings: Iterable[Finding]) -> bool:
    """Whether any of the findings stops something."""
    return any(finding.level == "fault" for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line: how many faults and warnings there are."""
    numbers = {level: sum(finding.level == level for finding in findings) for level in ("fault", "warning")}
    if not any(numbers.values()):
        return "all is well"
    return ", ".join(count(number, level) for level, number in numbers.items() if number)


def as_document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the JSON document of all findings."""
    return {
        **FORMAT.header(),
        "is_well": not are_faults(findings),
        "num_faults": sum(finding.level == "fault" for finding in findings),
        "num_warnings": sum(finding.level == "warning" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }

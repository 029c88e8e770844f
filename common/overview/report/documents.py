"""What else a report may draw on: documents of other commands, and runs and tokenizers beside those that were named.

A document is known by the format it says. It is looked for in the runs, and beside them and their token stores; or it
is named on the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.common.errors import InputError, require
from beit.common.overview.report.run_files import TOKENIZER_FORMAT, RunFiles, read_run_files
from beit.common.runs.layout import CONFIG, DESCRIPTION
from beit.common.storage.documents import read_json
from beit.common.storage.paths import is_remote

_FITNESS, _COMPARISON = "beit-tokenizer-report", "beit-comparison"
_MOST_BYTES, _MOST_FILES = 8 << 20, 60
"""Of a document that is looked into unasked, and of documents in a folder; beit's are far smaller, and few."""
_LEVEL_NAMES = {"good": "good", "look": "look at this", "bad": "bad"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerVerdict:
    """What a fitness report says of a tokenizer, of one matter."""

    level: str
    """good, look or bad."""
    level_name: str
    """The same in words."""
    title: str
    """The matter."""
    text: str
    """What was found."""
    advice: str
    """What to do; empty where nothing is to be done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """All of them."""

    verdicts: Mapping[str, tuple[TokenizerVerdict, ...]]
    """On tokenizers, by fingerprint."""
    tokenizers: Mapping[str, Mapping[str, Any]]
    """config.json of those at hand, by fingerprint."""
    comparisons: Sequence[Mapping[str, Any]]
    """What `beit compare` wrote, of those named."""
    runs: Mapping[str, RunFiles]
    """Runs whose encoders others began from, by the path that these know them by."""
    notes: tuple[str, ...] = ()
    """What is missing of them, one sentence each."""

    def run_of(self, encoder: str) -> RunFiles | None:
        """Return the run an encoder lies in, where it is at hand."""
        return self.runs.get(encoder)


def find_documents(runs: Sequence[RunFiles], named: Sequence[Path] = ()) -> Documents:
    """Collect what belongs to runs.

    Args:
        runs: Of the page.
        named: Documents that the user named.
    """
    verdicts: dict[str, tuple[TokenizerVerdict, ...]] = {}
    comparisons = []
    for file in named:
        document = read_json(file)
        form = document.get("format") if isinstance(document, dict) else None
        require(
            form in (_FITNESS, _COMPARISON),
            f"{file} is no document of a report; name runs, the JSON of beit tokenizer report, or that of beit compare",
        )
        if form == _FITNESS:
            verdicts |= _verdicts(document)
        else:
            comparisons.append(document)
    folders = _folders_around(runs)
    for document in _found_beside(folders):
        verdicts = _verdicts(document) | verdicts
    return Documents(
        verdicts=verdicts, tokenizers=_tokenizers(folders), comparisons=comparisons, runs=_earlier_runs(runs)
    )


def _folders_around(runs: Sequence[RunFiles]) -> list[Path]:
    """Return folders in which what belongs to runs may lie: they themselves, and those in which they and stores lie."""
    stores = [str(run.data.get("store") or run.origin.get("store") or "") for run in runs]
    places = [run.path.resolve() for run in runs] + [Path(store) for store in stores if store and not is_remote(store)]
    return list(dict.fromkeys(folder for place in places for folder in (place, place.parent)))


def _found_beside(folders: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for folder in folders:
        for file in sorted(folder.glob("*.json"))[:_MOST_FILES]:
            if file.stat().st_size <= _MOST_BYTES and _FITNESS.encode() in file.read_bytes():
                document = _read(file)
                if document.get("format") == _FITNESS:
                    yield document


def _tokenizers(folders: Iterable[Path]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for folder in folders:
        for file in [folder / DESCRIPTION, *sorted(folder.glob(f"*/{DESCRIPTION}"))[:_MOST_FILES]]:
            document = _read(file) if file.is_file() else {}
            if document.get("format") == TOKENIZER_FORMAT:
                found.setdefault(str(document.get("fingerprint")), document)
    return found


def _earlier_runs(runs: Sequence[RunFiles]) -> dict[str, RunFiles]:
    found: dict[str, RunFiles] = {}
    for run in runs:
        origin = run.origin or next(iter(run.probes.values()), {})
        for encoder in {str(origin.get("encoder") or ""), str(run.settings.get("encoder") or "")} - {"", "random"}:
            folder = _located(encoder, run)
            if folder is None:
                continue
            same = next((one for one in runs if one.path.resolve() == folder.resolve()), None)
            try:
                found[encoder] = same or read_run_files([folder])[0]
            except InputError:
                continue
    return found


def _located(encoder: str, run: RunFiles) -> Path | None:
    """Return the run of an encoder; of a relative path it is not recorded what it is relative to."""
    if is_remote(encoder):
        return None
    places = [base / encoder for base in (Path(), *run.path.resolve().parents)]
    return next((folder for place in places for folder in (place, place.parent) if (folder / CONFIG).is_file()), None)


def _verdicts(document: Mapping[str, Any]) -> dict[str, tuple[TokenizerVerdict, ...]]:
    found = {}
    for tokenizer in document.get("tokenizers", ()):
        rows = [row for row in tokenizer.get("verdicts", ()) if isinstance(row, dict)]
        found[str(tokenizer.get("tokenizer", {}).get("fingerprint"))] = tuple(
            TokenizerVerdict(
                level=str(row.get("level")),
                level_name=_LEVEL_NAMES.get(str(row.get("level")), "?"),
                title=str(row.get("title", "")),
                text=_sentence(row.get("text")),
                advice=_sentence(row.get("advice")),
            )
            for row in rows
        )
    return found


def _sentence(value: Any) -> str:
    text = str(value or "")
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        document = read_json(file)
    except (InputError, OSError):
        return {}
    return document if isinstance(document, dict) else {}

"""What `beit report` does: check what was named, read it, ask `beit compare` about the runs, and write the page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from beit.common.errors import InputError, require
from beit.common.overview.report.asking import ask_beit
from beit.common.overview.report.documents import Documents, find_documents
from beit.common.overview.report.drawing import draw_missing
from beit.common.overview.report.page import report_page
from beit.common.overview.report.pictures import picture_section
from beit.common.overview.report.results import results
from beit.common.overview.report.run_files import RunFiles, read_run_files
from beit.common.runs.layout import REPORT
from beit.common.runs.outputs import PAGE, check_outputs
from beit.common.storage.documents import read_json
from beit.common.storage.files import write_output
from beit.common.storage.paths import require_local


def make_report(
    named: Sequence[str], out: Path | None, *, has_pictures: bool = True, say: Callable[[str], None]
) -> Path:
    """Write the page about what was named.

    Args:
        named: Runs, and documents about them, which end in .json.
        out: Where to; left out, into the run, where it is one.
        has_pictures: Whether pictures are on it; those that a run does not have are drawn.
        say: Tells the user what takes its time.

    Returns:
        The file.
    """
    for place in named:
        require(place.strip() != "", "a name is empty; name the RUN of a training or a probe")
        require_local(Path(place), place)
    documents = [Path(place) for place in named if place.lower().endswith(".json")]
    paths = [Path(place) for place in named if not place.lower().endswith(".json")]
    require(len(paths) > 0, f"{documents[0] if documents else 'this'} is no run; name at least one run beside it")
    for path in documents:
        require(path.is_file(), f"{path} does not exist")
    if out is None:
        require(
            len(paths) == 1, f"{len(paths)} runs need --out F.html; without it the page of one run goes into the run"
        )
        out = paths[0] / REPORT
    check_outputs({"--out": out}, inputs=named, endings=PAGE)
    runs = read_run_files(paths)
    with tempfile.TemporaryDirectory() as scratch:
        drawn = draw_missing(runs, Path(scratch), say=say) if has_pictures else {}
        if drawn:  # which takes its time: runs at work have gone on, and the page is to be of one moment
            runs = read_run_files(paths)
        found = _compared(runs, find_documents(runs, documents), say)
        pictures = [picture_section(runs, drawn)] if has_pictures else []
        write_output(out, report_page(runs, documents=found, pictures=pictures).encode())
    return out


def _compared(runs: Sequence[RunFiles], documents: Documents, say: Callable[[str], None]) -> Documents:
    """Add what `beit compare` says of the runs, where several measured the same and nobody named its document."""
    comparable = [run for run in runs if run.kind != "tokenizer" and results(run)]
    kinds = [run.kind for run in comparable]
    several = [run for run in comparable if kinds.count(run.kind) > 1]
    if not several or documents.comparisons:
        return documents
    say(f"comparing {len(several)} runs")
    document, trouble = _ask_compare([run.path for run in several])
    if document is None:
        return replace(documents, notes=(*documents.notes, f"The runs could not be compared: {trouble}"))
    return replace(documents, comparisons=[document])


def _ask_compare(runs: Sequence[Path]) -> tuple[dict[str, Any] | None, str]:
    """Return the JSON of `beit compare`, or why there is none."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "comparison.json"
        trouble = ask_beit(["compare", *map(str, runs), "--out", str(out)])
        try:
            return read_json(out), ""
        except InputError as error:
            return None, trouble or str(error)

"""The sections of a report, in the order in which they are read; pictures stand after the curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from beit.common.errors import InputError
from beit.common.overview.report.curves import learning_section, probe_section, speed_section
from beit.common.overview.report.documents import Documents
from beit.common.overview.report.provenance import provenance_section
from beit.common.overview.report.results import results_section
from beit.common.overview.report.run_files import RunFiles
from beit.common.overview.report.section import Section
from beit.common.overview.report.settings import settings_section
from beit.common.overview.report.timeline import timeline_section
from beit.common.storage.documents import reading


def report_sections(
    runs: Sequence[RunFiles], documents: Documents, pictures: Sequence[Section] = ()
) -> tuple[tuple[Section, ...], tuple[str, ...]]:
    """Return all sections that have something to show, and what could not be shown, one line each.

    Args:
        runs: Of the page.
        documents: What else there is about them.
        pictures: Sections of pictures, drawn already.
    """
    before: dict[str, Callable[[], Section]] = {
        "results": lambda: results_section(runs, documents),
        "learning": lambda: learning_section(runs),
    }
    after: dict[str, Callable[[], Section]] = {
        "probe": lambda: probe_section(runs),
        "provenance": lambda: provenance_section(runs, documents),
        "speed": lambda: speed_section(runs),
        "starts": lambda: timeline_section(runs),
        "settings": lambda: settings_section(runs),
    }
    gaps: list[str] = []
    found = [*_built(before, gaps), *pictures, *_built(after, gaps)]
    return tuple(section for section in found if section.parts), tuple(gaps)


def _built(builders: Mapping[str, Callable[[], Section]], gaps: list[str]) -> Iterator[Section]:
    """Build sections; of a document of another shape than ours, one is lost, and not the page."""
    for name, build in builders.items():
        try:
            with reading(f"what the section {name} shows", way_out="it is left out"):
                yield build()
        except InputError as error:
            gaps.append(str(error))

"""The sections of a report, in the order in which they are read; pictures stand after the curves."""

from __future__ import annotations

from collections.abc import Sequence

from beit.common.overview.report.curves import learning_section, probe_section, speed_section
from beit.common.overview.report.documents import Documents
from beit.common.overview.report.provenance import provenance_section
from beit.common.overview.report.results import results_section
from beit.common.overview.report.run_files import RunFiles
from beit.common.overview.report.section import Section
from beit.common.overview.report.settings import settings_section
from beit.common.overview.report.timeline import timeline_section


def report_sections(
    runs: Sequence[RunFiles], documents: Documents, pictures: Sequence[Section] = ()
) -> tuple[Section, ...]:
    """Return all sections that have something to show.

    Args:
        runs: Of the page.
        documents: What else there is about them.
        pictures: Sections of pictures, drawn already.
    """
    found = [
        results_section(runs, documents),
        learning_section(runs),
        *pictures,
        probe_section(runs),
        provenance_section(runs, documents),
        speed_section(runs),
        timeline_section(runs),
        settings_section(runs),
    ]
    return tuple(section for section in found if section.parts)

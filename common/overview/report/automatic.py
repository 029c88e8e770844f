"""The page that a run writes of itself when it ends or stops: RUN/report.html. It fails no run, and takes seconds."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.overview.quiet import saying_only
from beit.common.pages.pictures import save_png
from beit.common.runs.layout import PICTURES, REPORT
from beit.common.storage.files import write_atomic

logger = logging.getLogger(__name__)

Draw = Callable[[], Image.Image | None]
"""Draws a sheet; None where there is nothing to draw."""


def write_report(run: Path, *, draw: Mapping[str, Draw] | None = None) -> None:
    """Write the report of a run, pictures first; what cannot be drawn or written is said in one line, no more.

    Args:
        run: Its directory.
        draw: By name, what draws the sheets that only an end is worth.
    """
    _write(run, draw or {})


def _write(run: Path, draw: Mapping[str, Draw]) -> None:
    for name, drawn in draw.items():
        _draw(run, name, drawn)
    try:
        # Charts take half a second of imports, which only those who draw pay for.
        from beit.common.overview.report.page import report_page
        from beit.common.overview.report.pictures import picture_section
        from beit.common.overview.report.run_files import read_run_files

        runs = read_run_files([run], has_ended=True)
        write_atomic(run / REPORT, report_page(runs, pictures=[picture_section(runs)]).encode())
    except Exception as error:  # whatever it is, the run itself is well
        reason = " ".join(str(error).split()) or type(error).__name__
        again = shlex.join(["beit", "report", str(run), "--out", "report.html"])
        logger.warning(
            "%s was not written (%s); %s writes it, run.report=false leaves it out", run / REPORT, reason, again
        )


def _draw(run: Path, name: str, drawn: Draw) -> None:
    try:
        with saying_only(logging.WARNING):  # that a model was loaded, nobody asked
            image = drawn()
        if image is not None:
            (run / PICTURES).mkdir(exist_ok=True)
            save_png(image, run / PICTURES / f"{name}.png", is_quick=True)
    except (InputError, BadSample, OSError) as error:
        logger.info("the report of %s has no picture of its %s: %s", run, name, error)
    except Exception as error:  # a picture is not worth a training
        logger.warning(
            "no picture of the %s was drawn (%s: %s)", name, type(error).__name__, " ".join(str(error).split())
        )

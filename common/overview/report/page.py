"""The page of a report: one HTML file that needs nothing but itself; its template is `page.html`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beit.common.overview.report.documents import Documents, find_documents
from beit.common.overview.report.history import history
from beit.common.overview.report.results import results
from beit.common.overview.report.run_files import RunFiles
from beit.common.overview.report.section import Section
from beit.common.overview.report.sections import report_sections
from beit.common.overview.report.timeline import duration, seconds_of, state_text
from beit.common.pages.html_page import render
from beit.common.pages.numbers import ABSENT, count
from beit.common.runs.layout import NONFINITE

_MOST_CARDS = 3
"""Numbers of a run among its cards, besides state, time and rate."""


def report_page(
    runs: Sequence[RunFiles], *, documents: Documents | None = None, pictures: Sequence[Section] = ()
) -> str:
    """Return the whole page.

    Args:
        runs: Read by `read_run_files`.
        documents: What else there is about them; left out, it is looked for.
        pictures: Sections of pictures, which stand after the curves.
    """
    documents = find_documents(runs) if documents is None else documents
    sections, gaps = report_sections(runs, documents, pictures)
    kinds = list(dict.fromkeys(run.kind for run in runs))
    is_single = len(runs) == 1
    return render(
        Path(__file__).with_name("page.html"),
        title=f"Report on {runs[0].name}" if is_single else f"Report on {len(runs)} runs",
        lead=_lead(runs[0]) if is_single else f"{count(len(runs), 'run')}: {', '.join(kinds)}",
        cards_shown=_cards(runs[0]) if is_single else [],
        overview=None if is_single else _overview(runs),
        alarms=[alarm for run in runs if (alarm := _alarm(run, is_single=is_single))],
        gaps=[*(gap for run in runs for gap in run.gaps), *gaps],
        sections=sections,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def _lead(run: RunFiles) -> str:
    names = {
        "pre-training": "Pre-training",
        "probe": "Frozen features, measured",
        "tokenizer": "Training of a tokenizer",
    }
    return f"{names.get(run.kind, run.kind.capitalize())}, {state_text(run)}"


def _cards(run: RunFiles) -> list[tuple[str, str, str]]:
    """Return what matters most of one run: name, value and what it is to be held against."""
    found = [
        (result.measure, result.value, "; ".join(part for part in (_known(result.interval), result.baseline) if part))
        for result in results(run)[:_MOST_CARDS]
    ]
    starts = history(run)
    seconds, rate = seconds_of(starts), _rate(run)
    if seconds is not None:
        found.append(("time at work", duration(seconds), f"in {count(len(starts), 'start')}"))
    if rate:
        found.append(("images per second", count(rate), "the median of its records"))
    return found


def _alarm(run: RunFiles, *, is_single: bool) -> str:
    """Say why a run diverged and what to do; empty for one that did not."""
    if run.divergence is None:
        return ""
    limit, rate = run.divergence.limit, run.settings.get("optimizer.lr")
    lower = "`optimizer.lr`" + (f", which was {rate:g}," if isinstance(rate, int | float) else "")
    last = max(run.checkpoints, default=0)
    onward = (
        f" and go on from the checkpoint of step {last:,}, or one before it (`--resume`)" if last else " and begin anew"
    )
    return (
        ("" if is_single else f"{run.name}: ")
        + f"More than {limit.most} steps {limit.among} had a loss or gradients that were not finite, "
        f"which stops a run. Lower {lower}{onward}. Which samples they were is in `{NONFINITE}` of the run."
    )


def _known(interval: str) -> str:
    return f"95 % interval: {interval}" if interval else ""


def _overview(runs: Sequence[RunFiles]) -> dict[str, Any]:
    titles = ["run", "kind", "state", "result", "time at work"]
    rows = []
    for run in runs:
        found = results(run)[:1]
        seconds = seconds_of(history(run))
        main = f"{found[0].value}, {found[0].measure}" if found else ABSENT
        cells = [run.kind, state_text(run), main, ABSENT if seconds is None else duration(seconds)]
        rows.append({"name": run.name, "place": run.place, "cells": cells})
    return {"titles": titles, "rows": rows}


def _rate(run: RunFiles) -> float | None:
    rates = sorted(record["images_per_second"] for record in run.records if record.get("images_per_second"))
    return rates[len(rates) // 2] if rates else None

"""How a comparison of runs is written down: for the terminal, as Markdown, CSV, JSON and a self-contained page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from beit import __version__
from beit.common.pages.tables import aligned, folded
from beit.common.runs.outputs import check_outputs
from beit.common.storage.documents import Format, json_bytes
from beit.common.storage.files import write_output
from beit.finetune.compare.compare import Comparison, Group, metric_name, readings, task_name
from beit.finetune.compare.rows import LEGEND, NUMBERS, TITLES, row_cells, sections, settings_text

FORMAT = Format("beit-comparison", 1)


def check_comparison_output(out: Path | None, runs: Iterable[Path] = ()) -> None:
    """Refuse, before anything is read, an output file of an unknown format or in a place that cannot be written to."""
    check_outputs({"--out": out}, inputs=runs, endings=_FORMATS)


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write the comparison in the format that the ending of `out` says."""
    write_output(out, _FORMATS[out.suffix.lower()](comparison))


def as_text(comparison: Comparison) -> str:
    """Return the table, the settings in which its rows differ, and the notes, for a terminal."""
    shown = [TITLES.index(title) for title in TITLES if title not in ("task", "metric")]
    align = "".join(">" if TITLES[place] in NUMBERS else "<" for place in shown)
    parts = []
    for (task, metric), groups in sections(comparison).items():
        rows = [TITLES, *(row_cells(group, comparison.groups) for group in groups)]
        table = aligned([[row[place] for place in shown] for row in rows], align=align)
        parts.append(f"{task_name(task)}, {metric_name(metric)}\n{table}")
    texts = [f"{group.label}  {settings_text(group)}" for group in comparison.groups]
    parts.append("\n".join(folded(text, indent="   ") for text in texts))
    return "\n\n".join(
        [
            *parts,
            folded(LEGEND),
            "\n".join(folded(note, indent="  ") for note in [*comparison.notes, *readings(comparison.groups)]),
        ]
    )


def as_markdown(comparison: Comparison) -> bytes:
    """Return a table for a page of results."""
    titles = [*TITLES, "settings"]
    lines = [f"| {' | '.join(titles)} |"]
    lines.append(f"|{'|'.join(' ---: ' if title in NUMBERS else ' --- ' for title in titles)}|")
    for group in comparison.groups:
        cells = [*row_cells(group, comparison.groups), settings_text(group)]
        lines.append(f"| {' | '.join(_escaped(cell) for cell in cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            _escaped(LEGEND),
            "",
            *(f"- {_escaped(n)}" for n in [*comparison.notes, *readings(comparison.groups)]),
            "",
        ]
    ).encode()


def _escaped(cell: str) -> str:
    return cell.strip().replace("+-", "±").replace("|", "\\|").replace("*", "\\*")


def as_csv(comparison: Comparison) -> bytes:
    """Return one line per group, plain numbers, and one column per setting that differs."""
    names = list(dict.fromkeys(name for group in comparison.groups for name in group.differing))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    documents = [_group_document(group) for group in comparison.groups]
    columns = [name for name in documents[0] if name not in ("settings", "runs")]
    writer.writerow([*columns, *names, "runs"])
    for group, values in zip(comparison.groups, documents, strict=True):
        settings = [values["settings"].get(name, "") for name in names]
        writer.writerow([*(values[name] for name in columns), *settings, " ".join(run.path for run in group.runs)])
    return file.getvalue().encode()


def as_json(comparison: Comparison) -> bytes:
    """Return everything, each run's own numbers included."""
    return json_bytes(
        {
            **FORMAT.header(),
            "beit_version": __version__,
            "groups": [_group_document(group) for group in comparison.groups],
            "notes": comparison.notes,
        }
    )


def _group_document(group: Group) -> dict[str, Any]:
    difference = group.difference
    return {
        "label": group.label,
        "task": group.task,
        "metric": group.metric,
        "mean": group.interval.mean,
        "half_width": group.interval.half_width,
        "num_runs": len(group.runs),
        "difference": None if difference is None else difference.mean,
        "difference_half_width": None if difference is None else difference.half_width,
        "num_pairs": None if difference is None else difference.num_values,
        "steps": max((run.budget.steps or 0 for run in group.runs), default=0) or None,
        "images": max(run.budget.images for run in group.runs),
        "mean_device_seconds": group.device_seconds,
        "settings": group.differing,
        "runs": [
            {"path": run.path, "seed": list(run.seed), "measured_on": run.measured_on, "metrics": run.metrics}
            for run in group.runs
        ],
    }


def as_html(comparison: Comparison) -> bytes:
    """Return a self-contained page."""
    from beit.finetune.compare.page import comparison_page  # jinja2 and matplotlib are for those who ask for a page

    return comparison_page(comparison).encode()


_FORMATS = {".json": as_json, ".csv": as_csv, ".md": as_markdown, ".html": as_html}

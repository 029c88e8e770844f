"""How a comparison of runs is written down: for the terminal, as Markdown, CSV, JSON and a self-contained page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from beit import __version__
from beit.common.errors import InputError
from beit.common.pages.numbers import short_names
from beit.common.pages.tables import aligned, folded
from beit.common.runs.outputs import check_outputs
from beit.common.storage.documents import Format, json_bytes
from beit.common.storage.files import write_output
from beit.finetune.compare.compare import Comparison, Group, best_labels, is_share, metric_name, readings, task_name
from beit.finetune.compare.intervals import Interval

FORMAT = Format("beit-comparison", 1)
LEGEND = (
    "+-: 95 % interval of the mean over seeds (Student's t). Differences, of shares in points, are to the first row, "
    "over pairs with the same seeds. One run has no interval, one pair no difference: repeat them with --set "
    "train.seed=1. *: the best mean, where all have an interval. Device time is that of training in one run, over all "
    "its ranks."
)
TITLES = ("", "task", "metric", "mean", "difference", "seeds", "steps", "images", "device time")
_NUMBERS = ("mean", "difference", "seeds", "steps", "images", "device time")


def check_comparison_output(out: Path | None, runs: Iterable[Path] = ()) -> None:
    """Refuse, before anything is read, an output file of an unknown format or in a place that cannot be written to."""
    check_outputs({"--out": out}, inputs=runs)
    if out is not None and out.suffix not in _FORMATS:
        raise InputError(f"--out {out} must end in {', '.join(_FORMATS)}, which says the format")


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write the comparison in the format that the ending of `out` says."""
    write_output(out, _FORMATS[out.suffix](comparison))


def as_text(comparison: Comparison) -> str:
    """Return the table, the settings in which its rows differ, and the notes, for a terminal."""
    shown = [TITLES.index(title) for title in TITLES if title not in ("task", "metric")]
    align = "".join(">" if TITLES[place] in _NUMBERS else "<" for place in shown)
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


def sections(comparison: Comparison) -> dict[tuple[str, str], list[Group]]:
    """Return the groups by task and metric, each of which is a table of its own to read."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in comparison.groups:
        found.setdefault((group.task, group.metric), []).append(group)
    return found


def row_cells(group: Group, groups: Sequence[Group]) -> list[str]:
    """Return one row of the table, under `TITLES`; the best mean is starred."""
    budgets = [run.budget for run in group.runs]
    steps = [budget.steps for budget in budgets if budget.steps is not None]
    star = "*" if group.label in best_labels(groups) else " "
    return [
        group.label,
        task_name(group.task),
        metric_name(group.metric),
        interval_text(group.interval, group.metric) + star,
        _difference_text(group),
        str(len({run.seed for run in group.runs})),
        _span(steps),
        _span([budget.images for budget in budgets]),
        "" if group.device_seconds is None else duration(group.device_seconds),
    ]


def _difference_text(group: Group) -> str:
    """Return the difference with its interval; one pair of runs has none, and a bare number would read as a verdict."""
    if group.difference is None:
        return ""
    if group.difference.half_width is None:
        return "one pair"
    return interval_text(group.difference, group.metric, signed=True)


def interval_text(interval: Interval, metric: str, *, signed: bool = False) -> str:
    """Format a mean and its interval; shares in percent, their differences in points."""
    scale, digits = (100, 1) if is_share(metric) else (1, 4)
    mean = f"{scale * interval.mean:{'+' if signed else ''}.{digits}f}"
    half = "" if interval.half_width is None else f" +- {scale * interval.half_width:.{digits}f}"
    return mean + half + (" %" if is_share(metric) and not signed else "")


def duration(seconds: float) -> str:
    """Format the training time of a mean run."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def settings_text(group: Group) -> str:
    """Name the settings in which a group differs from the others, and its runs where there are none."""
    shown = [f"{name}={value_text(value)}" for name, value in group.differing.items()]
    return ", ".join(shown) or ", ".join(short_names(run.path for run in group.runs).values())


def value_text(value: Any) -> str:
    """Write the value of a setting; of absolute paths the end."""
    return "none" if value is None else short_names([value])[value] if isinstance(value, str) else str(value)


def _span(values: Sequence[int]) -> str:
    if not values:
        return ""
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,}-{max(values):,}"


def as_markdown(comparison: Comparison) -> bytes:
    """Return a table for a page of results."""
    titles = [*TITLES, "settings"]
    lines = [f"| {' | '.join(titles)} |"]
    lines.append(f"|{'|'.join(' ---: ' if title in _NUMBERS else ' --- ' for title in titles)}|")
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

"""What rivals of BEiT measured: means over seeds, their intervals, differences of pairs; as table, document and chart.

Here: reading finished runs of a comparison, and saying what they come to. Not here: the runs (`rivals.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from beit.common.pages.charts import Line, LineChart, line_charts
from beit.common.pages.numbers import count
from beit.common.pages.pictures import PALETTE, save_png, sheet
from beit.common.runs.environment import environment
from beit.common.storage.documents import write_json
from beit.common.storage.files import write_atomic
from beit.finetune.compare.runs import read_runs
from beit.finetune.worth.runner import cell, interval

BEIT, RANDOM = "beit", "random"
NAMES = {BEIT: "BEiT", "dino": "DINO", "mae": "MAE", RANDOM: "random weights"}
MEASURES = {
    "linear-probe": "linear probe",
    "knn-mean": "k-NN, mean of patches",
    "knn-cls": "k-NN, CLS",
    "fine-tuned": "fine-tuned",
}
"""What is measured, by the name of its folder."""
_CHART_PX = (300, 360)

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Top-1 as a share, by measure, start and seed."""


def base_folder(out: Path, start: str, seed: int) -> Path:
    """Return where everything of a start and a seed is."""
    return out / f"{start}-seed{seed}"


def read_scores(out: Path, seeds: Sequence[int]) -> Scores:
    """Return the top-1 of everything that is finished of some seeds."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for measure in MEASURES:
        for start in NAMES:
            for seed in seeds:
                folder = base_folder(out, start, seed) / measure
                if not folder.with_name(f"{measure}.json").exists():
                    continue
                (record,) = read_runs(folder)
                by_seed = found.setdefault(measure, {}).setdefault(start, {})
                by_seed[seed] = record.metrics[record.main_metric]
    return found


def write_table(out: Path, scores: Scores, facts: Mapping[str, Any]) -> str:
    """Write rivals.md, rivals.json and rivals.png into OUT, and return the first.

    Args:
        out: Folder of the comparison.
        scores: What was measured.
        facts: "settings"; "costs", of every method steps, images and seconds per seed; "token_seconds" or None.
    """
    rows = [
        row_of(measure, start, by_start) for measure, by_start in scores.items() for start in NAMES if start in by_start
    ]
    write_json(out / "rivals.json", {**facts, "environment": environment(), "rows": rows})
    table = as_markdown(rows, facts)
    write_atomic(out / "rivals.md", table.encode())
    if rows:
        save_png(picture(rows, facts), out / "rivals.png")
    return table


def row_of(measure: str, start: str, by_start: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Return one line of the table as plain values: a start, and BEiT less it over the seeds that both have."""
    own, ours = by_start[start], by_start.get(BEIT, {})
    pairs = [ours[seed] - value for seed, value in own.items() if seed in ours]
    return {
        "measure": measure,
        "start": start,
        "by_seed": dict(own),
        "top1": interval(list(own.values())),
        "beit_less_this": None if start == BEIT else interval(pairs),
        "wins_of_beit": sum(pair > 0 for pair in pairs),
    }


def as_markdown(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """Return the table for reading, what was spent before what came of it."""
    lines = ["| pre-trained by | steps | images seen | processor seconds |", "| --- | ---: | ---: | ---: |"]
    for method, costs in facts["costs"].items():
        if costs:
            means = {name: fmean(cost[name] for cost in costs) for name in ("steps", "images", "seconds")}
            numbers = " | ".join(count(mean) for mean in means.values())
            lines.append(f"| {NAMES[method]} | {numbers} |")
    if facts["token_seconds"] is not None:
        lines += ["", f"BEiT's tokens took {facts['token_seconds']:,.0f} processor seconds more, once for all seeds."]
    lines.append("")
    lines += ["| measured | pre-trained by | top-1 | BEiT less this, in points | BEiT wins |"]
    lines += ["| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        cells = [MEASURES[row["measure"]], NAMES[row["start"]], cell(row["top1"], " %")]
        is_ours = row["beit_less_this"] is None
        cells += ["", ""] if is_ours else [cell(row["beit_less_this"], "", signed=True)]
        cells += [] if is_ours else [f"{row['wins_of_beit']} of {row['beit_less_this']['num_values']}"]
        lines.append(f"| {' | '.join(cells)} |")
    text = (
        "Means over seeds and their 95 % intervals (Student's t). A seed has weights, order and labels of its own, the "
        "labels the same for all; differences are those of pairs. Linear probe and k-NN choose block and k on the "
        "images they are measured on; a fine-tuning is measured once, at its end."
    )
    return "\n".join([*lines, "", text]) + "\n"


def picture(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Image.Image:
    """Draw the means of all starts and their intervals, one chart per measure, on one scale."""
    charts = []
    for measure in dict.fromkeys(row["measure"] for row in rows):
        own = {row["start"]: row["top1"] for row in rows if row["measure"] == measure}
        lines = [
            Line(
                name=NAMES[start],
                points=[(place, top1["mean"])],
                half_widths=[top1["half_width"]],
                colour=PALETTE[list(NAMES).index(start)],
            )
            for place, (start, top1) in enumerate(own.items())
        ]
        # One word each, so that none runs into the next.
        ticks = {float(place): NAMES[start].split()[0] for place, start in enumerate(own)}
        named = {"title": f"{MEASURES[measure]}, top-1", "x_name": "pre-trained by", "x_ticks": ticks}
        charts.append(LineChart(lines=lines, y_range=_range(rows), percent=True, **named))
    drawn = line_charts(charts, chart_px=_CHART_PX, columns=len(charts), key=False)
    settings = facts["settings"]
    said = f"{settings['seconds']:g} processor seconds of pre-training each, {settings['labels']} labels"
    legend = "Dots are means over seeds, strokes their 95 % intervals (Student's t)."
    return sheet([drawn], heading="BEiT and its rivals: one network, one budget", facts=said, legend=legend)


def _range(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the ends of the scale: what all dots and strokes need."""
    reach = [(row["top1"]["mean"], row["top1"]["half_width"] or 0.0) for row in rows]
    low, high = min(mean - half for mean, half in reach), max(mean + half for mean, half in reach)
    return max(0.0, low - 0.02), min(1.0, high + 0.02)

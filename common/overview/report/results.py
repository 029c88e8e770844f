"""What runs came to: the measures that count, how far they are known, and what they are to be held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from beit.common.overview.report.documents import Documents
from beit.common.overview.report.run_files import RunFiles
from beit.common.overview.report.section import Section, folded, heading, table, text
from beit.common.overview.report.settings import value_text
from beit.common.pages.html_page import Html
from beit.common.pages.intervals import share_interval
from beit.common.pages.numbers import ABSENT, count, percent, percent_range
from beit.common.runs.layout import MASK_PROBE
from beit.common.runs.starts import named

_TASKS = {
    "pretrain": "pre-training",
    "linear-probe": "linear probe",
    "knn": "k-NN",
    MASK_PROBE: "linear probe of patches",
}
_INTERVAL, _BASELINE = "95 % interval", "without looking"
_READING = {
    _INTERVAL: "The interval says how far so few images let a number be known: of shares of images Wilson's, of others "
    "from their spread over images; it says nothing about other seeds.",
    _BASELINE: "Without looking: what is right, or known, without seeing the image.",
}
_MEASURES = {"top1": "top-1", "top5": "top-5", "map": "mean average precision", "miou": "mean IoU"}
"""Shares that `beit compare` compares by."""
_OTHERS = {"held_out_bits": "bits per masked token", "held_out_mse": "squared error of masked patches"}
"""What else it compares by."""
_LEARNED_FROM = ", which it learned from"
_NORMAL = 1.96
_NOT_FINITE = "not finite"
_MOST_SETTINGS = 4
_COMPARED = (
    "Runs that differ by their seeds alone are one experiment. ±: 95 % interval over seeds; one run has none. "
    "Differences of shares are in points."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One number of a run."""

    measure: str
    """What it is."""
    value: str
    """Written with its unit."""
    interval: str = ""
    """95 %, written; empty where it is not known."""
    baseline: str = ""
    """What is known without looking at the image, written; empty where nothing says."""
    measured_on: str = ""
    """Images, and how they were chosen."""


def results(run: RunFiles) -> list[Result]:
    """Return the numbers of a run, the one that counts first."""
    found = {"pre-training": _of_pretraining, "tokenizer": _of_tokenizer, "classification": _of_classifier}
    found |= {"segmentation": _of_segmenter}
    shown = list(found[run.kind](run)) if run.kind in found else []
    shown = [replace(result, value=_NOT_FINITE, interval="") if "nan" in result.value else result for result in shown]
    return [*shown, *(result for task in run.probes for result in _of_probe(task, run.probes[task]))]


def results_section(runs: Sequence[RunFiles], documents: Documents) -> Section:
    """Return a table of all numbers, and what `beit compare` says where it was asked."""
    parts = _table_of_results(_by_measure(runs), is_single=len(runs) == 1)
    for document in documents.comparisons:
        parts += _comparison(document, runs)
    parts += map(text, documents.notes)
    return Section(title="Results", anchor="results", parts=tuple(parts))


def _table_of_results(found: Sequence[tuple[RunFiles, Result]], *, is_single: bool) -> list[Html]:
    """Return the table, without columns in which nothing stands, and how to read it."""
    if not found:
        return []
    columns = {
        "run": [run.name for run, _ in found],
        "measure": [result.measure for _, result in found],
        "value": [result.value for _, result in found],
        _INTERVAL: [result.interval for _, result in found],
        _BASELINE: [result.baseline for _, result in found],
        "measured on": [result.measured_on for _, result in found],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells) and not (is_single and title == "run")}
    rows = [[cell or ABSENT for cell in row] for row in zip(*shown.values(), strict=True)]
    says = [_READING[title] for title in (_INTERVAL, _BASELINE) if title in shown]
    return [
        table("Results", list(shown), rows, numbers=["value", _INTERVAL]),
        *([text(" ".join(says))] if says else []),
    ]


def _by_measure(runs: Sequence[RunFiles]) -> list[tuple[RunFiles, Result]]:
    """Return the results of all runs, the same measure of runs of a kind one below the other."""
    found = []
    for kind in dict.fromkeys(run.kind for run in runs):
        columns = [[(run, result) for result in results(run)] for run in runs if run.kind == kind]
        for place in range(max(map(len, columns))):
            found += [column[place] for column in columns if place < len(column)]
    return found


def _comparison(document: Mapping[str, Any], runs: Sequence[RunFiles]) -> list[Html]:
    """Show what `beit compare` found: runs that differ by their seeds alone are one experiment."""
    names = {str(run.path): run.name for run in runs}
    groups = [group for group in document.get("groups") or () if isinstance(group, dict)]
    order = list(dict.fromkeys(group.get("task") for group in groups))
    rows = [_compared_row(group, names) for group in sorted(groups, key=lambda group: order.index(group.get("task")))]
    if not rows:
        return []
    titles = ["experiment", "measure", "mean", "to the first", "settings that differ"]
    shown = table("Comparison", titles, rows, numbers=titles[2:4], caption=_COMPARED)
    notes = [text(str(note)) for note in document.get("notes") or ()]
    return [heading("Compared"), shown, *([folded("Notes", notes)] if notes else [])]


def _compared_row(group: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    task, metric = str(group.get("task", "")), str(group.get("metric", ""))
    is_share = metric in _MEASURES
    paths = [str(run.get("path")) for run in group.get("runs") or ()]
    settings = [f"`{name}` {value_text(value)}" for name, value in (group.get("settings") or {}).items()]
    left = len(settings) - _MOST_SETTINGS
    return [
        ", ".join(names.get(path, named(path)) for path in paths),
        f"{_TASKS.get(task, task)}, {(_MEASURES | _OTHERS).get(metric, metric)}",
        _with_half_width(group.get("mean"), group.get("half_width"), is_share=is_share),
        _difference(group.get("difference"), group.get("difference_half_width"), is_share=is_share),
        ", ".join(settings[:_MOST_SETTINGS]) + (f" and {left} more" if left > 0 else "") or ABSENT,
    ]


def _with_half_width(value: Any, half: Any, *, is_share: bool) -> str:
    if not isinstance(value, int | float):
        return ABSENT
    spread = isinstance(half, int | float)
    if is_share:
        return percent(value) + (f" ± {100 * half:.1f}" if spread else "")
    return f"{value:.3f}" + (f" ± {half:.3f}" if spread else "")


def _difference(value: Any, half: Any, *, is_share: bool) -> str:
    """Write a difference; that of shares in points."""
    if not isinstance(value, int | float):
        return ABSENT
    factor, digits = (100.0, 1) if is_share else (1.0, 3)
    spread = f" ± {factor * half:.{digits}f}" if isinstance(half, int | float) else ""
    return f"{factor * value:+.{digits}f}{spread}".replace("-", "\u2212")


def _of_pretraining(run: RunFiles) -> Iterator[Result]:
    found = _last(run, "held_out_bits", "held_out_mse") or run.origin.get("metrics") or {}
    images = f"{count(found.get('held_out_images') or 0, 'held-out image')}"
    if found.get("held_out_bits") is not None:
        bits, spread = found["held_out_bits"], found.get("held_out_bits_se")
        baselines = [
            f"{name} {found[key]:.2f}"
            for key, name in (("unigram_bits", "unigram"), ("neighbour_bits", "neighbour"))
            if found.get(key)
        ]
        yield Result(
            measure="bits per masked token",
            value=f"{bits:.2f}",
            interval=f"{bits - _NORMAL * spread:.2f} to {bits + _NORMAL * spread:.2f}" if spread else "",
            baseline=", ".join(baselines),
            measured_on=images,
        )
        if found.get("held_out_acc") is not None:
            chance = found.get("unigram_acc")
            yield Result(
                measure="masked tokens right",
                value=percent(found["held_out_acc"]),
                baseline=f"commonest word {percent(chance)}" if chance is not None else "",
                measured_on=images,
            )
    if found.get("held_out_mse") is not None:
        mean = found.get("mean_mse")
        yield Result(
            measure="squared error of hidden patches",
            value=f"{found['held_out_mse']:.3f}",
            baseline=f"mean of all patches {mean:.3f}" if mean else "",
            measured_on=images,
        )
    probe = _last(run, "probe_linear_acc") or {}
    for metric, name in (("probe_linear_acc", "linear probe while training"), ("probe_knn_acc", "k-NN while training")):
        if probe.get(metric) is not None:
            chance = probe.get("probe_chance")
            baseline = f"commonest class {percent(chance)}" if chance is not None else ""
            yield Result(
                measure=name, value=percent(probe[metric]), baseline=baseline, measured_on="the store's labels"
            )


def _of_tokenizer(run: RunFiles) -> Iterator[Result]:
    found = {name.removeprefix("eval_"): value for name, value in (run.origin.get("metrics") or {}).items()}
    images = count(found.get("images") or 0, "held-out image")
    words = (run.made.get("model") or {}).get("vocab_size")
    if found.get("psnr") is not None:
        mean = found.get("block_mean_psnr")
        baseline = f"mean colour of each square {mean:.2f} dB" if mean is not None else ""
        yield Result(
            measure="reconstruction (PSNR)", value=f"{found['psnr']:.2f} dB", baseline=baseline, measured_on=images
        )
    if found.get("teacher_cosine") is not None:
        yield Result(
            measure="cosine to the teacher's features", value=f"{found['teacher_cosine']:.3f}", measured_on=images
        )
    if found.get("closeness") is not None:
        yield Result(measure="cosine of patch and word", value=f"{found['closeness']:.3f}", measured_on=images)
    if found.get("words_used") is not None:
        of = f" of {count(words)}" if isinstance(words, int) else ""
        yield Result(measure="words in use", value=f"{count(found['words_used'])}{of}", measured_on=images)
    if found.get("perplexity") is not None:
        yield Result(measure="perplexity of the words", value=count(found["perplexity"]), measured_on=images)
    if found.get("agreement") is not None:
        chance = found.get("agreement_by_chance")
        baseline = f"any two squares {percent(chance)}" if chance is not None else ""
        yield Result(
            measure="squares that keep their word",
            value=percent(found["agreement"]),
            baseline=baseline,
            measured_on=images,
        )


def _of_classifier(run: RunFiles) -> Iterator[Result]:
    found, place = _measured(run)
    number, classes = found.get("num_images"), run.kept.get("class_names") or ()
    images = f"{count(number, 'image')} of {place}" if number else place
    chance = found.get("chance")
    baseline = f"guessing {percent(1 / len(classes))}" if classes else ""
    baseline = f"commonest class {percent(chance)}" if isinstance(chance, float) else baseline
    for metric, name in (
        ("top1", "top-1"),
        ("top5", "top-5"),
        ("map", "mean average precision"),
        ("macro_f1", "macro-F1"),
    ):
        value = found.get(metric)
        if value is None or metric == "top5" and 0 < len(classes) <= 5:
            continue
        has_interval = metric in ("top1", "top5") and number
        yield Result(
            measure=name,
            value=percent(value),
            interval=percent_range(*share_interval(value, int(number))) if has_interval and number else "",
            baseline=baseline if metric in ("top1", "map") else "",
            measured_on=images,
        )


def _of_segmenter(run: RunFiles) -> Iterator[Result]:
    found, place = _measured(run)
    number, limits, chance = found.get("num_images"), found.get("miou_interval"), found.get("chance")
    images = f"{count(number, 'image')} of {place}" if number else place
    for metric, name in (
        ("miou", "mean IoU"),
        ("mean_accuracy", "mean accuracy of classes"),
        ("pixel_accuracy", "pixels right"),
    ):
        if found.get(metric) is None:
            continue
        is_main = metric == "miou"
        yield Result(
            measure=name,
            value=percent(found[metric]),
            interval=percent_range(*limits) if is_main and isinstance(limits, list) and len(limits) == 2 else "",
            baseline=f"commonest class {percent(chance)}" if is_main and isinstance(chance, float) else "",
            measured_on=images,
        )


def _of_probe(task: str, found: Mapping[str, Any]) -> Iterator[Result]:
    number, classes = found.get("num_images"), found.get("num_classes")
    metric = "miou" if task == MASK_PROBE else "top1"
    if found.get(metric) is None:
        return
    block, k = found.get("best_block"), found.get("best_k")
    where = f" (block {block}{f', k = {k}' if k is not None else ''})" if block is not None else ""
    place = named(str(found.get("validation_data") or "")) + (_LEARNED_FROM if learned_from(found, found) else "")
    is_share_of_images = metric == "top1" and isinstance(number, int) and number > 0
    yield Result(
        measure=f"{_TASKS[task]}, {'mean IoU' if metric == 'miou' else 'top-1'}{where}",
        value=percent(found[metric]),
        interval=percent_range(*share_interval(found[metric], int(number))) if is_share_of_images and number else "",
        baseline=f"guessing {percent(1 / classes)}" if metric == "top1" and classes else "",
        measured_on=f"{count(number, 'image')} of {place}" if number else place,
    )


def _measured(run: RunFiles) -> tuple[Mapping[str, Any], str]:
    """Return what was measured of the model that is kept, by `beit evaluate` where it was, and on what."""
    origin = run.kept.get("provenance") or {}
    if run.evaluation:
        learned = _LEARNED_FROM if learned_from(origin, run.evaluation) else ""
        return run.evaluation, named(str(run.evaluation.get("data", ""))) + learned
    place = named(str(origin.get("validation_data") or ""))
    how = _LEARNED_FROM if learned_from(origin, origin) else ", by which the model was chosen"
    return origin.get("metrics") or {}, f"{place}{how}" if place else ""


def learned_from(training: Mapping[str, Any], measurement: Mapping[str, Any]) -> bool:
    """Whether a model was measured on the very images that it learned from, by what is said of both."""
    measured = measurement.get("validation_sha256")
    return measured is not None and measured == training.get("source_sha256")


def _last(run: RunFiles, *metrics: str) -> Mapping[str, Any] | None:
    found = [record for record in run.records if any(record.get(metric) is not None for metric in metrics)]
    return found[-1] if found else None

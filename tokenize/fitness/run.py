"""`beit tokenizer report` and `beit tokenizer compare`: from names and a source to a report and its files.

Everything that can be refused is refused before anything is measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from beit.common.errors import InputError, require
from beit.common.runs.outputs import JSON, check_outputs
from beit.common.sources.config import SourceConfig
from beit.common.storage.documents import json_bytes
from beit.common.storage.files import write_output
from beit.common.tokenizer import Tokenizer, load_tokenizer
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.fitness.measure import measure_fitness
from beit.tokenize.fitness.page import page
from beit.tokenize.fitness.report import FitnessReport, ReportSettings
from beit.tokenize.fitness.sheet import reconstruction_sheet
from beit.tokenize.fitness.verdicts import judge, judge_images
from beit.tokenize.fitness.views import ViewSample
from beit.tokenize.images import open_images
from beit.tokenize.setup import choose_device

USUAL_VIEW_PX = 112
"""Side of the views of tokenizers that take any; half of the 224 px that a ViT sees."""
MIN_GRID_SIZE = 4
"""Tokens per side: fewer leave no inner ones, and no room to shift."""
MIN_VIEW_PX = 16
"""Smallest side of a view: SSIM needs 11 px, generated images 16."""


def report_tokenizers(
    names: Sequence[str],
    source: str,
    settings: ReportSettings,
    *,
    out: Path | None = None,
    html: Path | None = None,
    reading: SourceConfig | None = None,
) -> FitnessReport:
    """Measure one or more tokenizers on the same views of a source's images; write a JSON file and a page where asked.

    Tokenizers are named as for `beit.common.tokenizer.load_tokenizer`, the source as for `beit tokenize`, or
    "synthetic:N"; `reading` says how its images are read.
    """
    check_outputs({"--out": out, "--html": html}, inputs=[source, *names], endings=JSON)
    twice = [name for name, count in Counter(names).items() if count > 1]
    require(not twice, f"tokenizer {', '.join(twice)} is given twice; name each once")
    device = choose_device(TokenizeConfig(), 0)
    tokenizers = [load_tokenizer(name, device=device) for name in names]
    sizes = choose_view_sizes(tokenizers, settings.view_size)
    with closing(
        open_images(source, img_size=max(sizes), cache_bytes=512 * 2**20, settings=reading, option="--range")
    ) as dataset:
        sample = ViewSample(dataset, num_images=settings.num_images, seed=settings.seed)
        measurements = [
            measure_fitness(tokenizer, sample, view_size=size, device=device)
            for tokenizer, size in zip(tokenizers, sizes, strict=True)
        ]
        num_usable = sample.num_in_source - len(sample.bad_samples)
        sheet = reconstruction_sheet(tokenizers, measurements, sample)
    report = FitnessReport(
        source=source,
        num_in_source=sample.num_in_source,
        num_drawn=len(sample),
        bad_samples=sample.bad_samples,
        settings=settings,
        labels=short_labels(names),
        fitness=[measurement.fitness for measurement in measurements],
        verdicts=[judge(measurement.fitness, num_in_source=num_usable) for measurement in measurements],
        images_verdict=judge_images(len(sample.bad_samples), len(sample)),
        sheet=sheet,
    )
    if html is not None:
        write_output(html, page(report).encode())
    if out is not None:
        write_output(out, json_bytes(report.as_json()))
    return report


def choose_view_sizes(tokenizers: Sequence[Tokenizer], view_size: int | None) -> list[int]:
    """Return the side of the views that each tokenizer gets, in px.

    Args:
        tokenizers: Those that are compared, or one.
        view_size: What the user wants for all. If None, the side that a tokenizer is made for, and for others what
            gives the same grid; without such a tokenizer one side near `USUAL_VIEW_PX` for all.
    """
    made_for = {
        tokenizer.img_size // tokenizer.downsampling: tokenizer for tokenizer in tokenizers if tokenizer.img_size
    }
    if view_size is not None or not made_for:
        return [_common_size(tokenizers, view_size)] * len(tokenizers)
    if len(made_for) > 1:
        (grid, one), (other_grid, other) = sorted(made_for.items())[:2]
        raise InputError(
            f"{one.name} is made for {grid} x {grid} words of {one.img_size} px and {other.name} for {other_grid} x "
            f"{other_grid} of {other.img_size} px, so no views suit both; report each by itself: "
            f"beit tokenizer report {one.name} SOURCE"
        )
    (grid,) = made_for
    sizes = [grid * tokenizer.downsampling for tokenizer in tokenizers]
    for tokenizer, size in zip(tokenizers, sizes, strict=True):
        require(
            grid >= MIN_GRID_SIZE and size >= MIN_VIEW_PX,
            f"views of {size} px, {grid} x {grid} words, are all that {made_for[grid].name} allows for {tokenizer.name}"
            f"; a report needs {MIN_GRID_SIZE} x {MIN_GRID_SIZE} words and {MIN_VIEW_PX} px at least",
        )
    return sizes


def _common_size(tokenizers: Sequence[Tokenizer], view_size: int | None) -> int:
    """Insist on a size of views that all tokenizers can cut into tokens, or find one."""
    factors = [tokenizer.downsampling for tokenizer in tokenizers]
    common = math.lcm(*factors)
    least = max(MIN_GRID_SIZE * max(factors), MIN_VIEW_PX)
    wanted = USUAL_VIEW_PX if view_size is None else view_size
    nearest = max(round(wanted / common) * common, -(-least // common) * common)
    if view_size is None:
        return nearest
    for tokenizer in tokenizers:
        require(
            tokenizer.img_size in (None, view_size),
            f"--view-size ({view_size}) is not {tokenizer.img_size}, the one side that {tokenizer.name} takes; leave "
            "--view-size out, then every tokenizer sees the views at the side it needs",
        )
        if view_size % tokenizer.downsampling or view_size < least:
            raise InputError(
                f"--view-size ({view_size}) must be a multiple of {tokenizer.downsampling}, the pixels per token of "
                f"{tokenizer.name}, and at least {least}; --view-size {nearest} suits "
                f"{'it' if len(tokenizers) == 1 else 'all tokenizers given'}"
            )
    return view_size


def short_labels(names: Sequence[str]) -> list[str]:
    """Return the last part of each name where that tells them apart, else the names."""
    last = [Path(name).name or name for name in names]
    return last if len(set(last)) == len(last) else list(names)

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
from beit.common.runs.outputs import check_outputs
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

MIN_GRID_SIZE = 4
"""Tokens per side: fewer leave no inner ones, and no room to shift."""
MIN_VIEW_PX = 16
"""Smallest side of a view: SSIM needs 11 px, generated images 16."""


def report_tokenizers(
    names: Sequence[str], source: str, settings: ReportSettings, *, out: Path | None = None, html: Path | None = None
) -> FitnessReport:
    """Measure one or more tokenizers on the same views of a source's images; write a JSON file and a page where asked.

    Tokenizers are named as for `beit.common.tokenizer.load_tokenizer`, the source as for `beit tokenize`, or
    "synthetic:N".

    """
    check_outputs({"--out": out, "--html": html}, inputs=[source, *names])
    twice = [name for name, count in Counter(names).items() if count > 1]
    require(not twice, f"tokenizer {', '.join(twice)} is given twice; name each once")
    device = choose_device(TokenizeConfig(), 0)
    tokenizers = [load_tokenizer(name, device=device) for name in names]
    check_view_size(tokenizers, settings.view_size)
    with closing(open_images(source, img_size=settings.view_size, cache_bytes=512 * 2**20)) as dataset:
        sample = ViewSample(dataset, num_images=settings.num_images, view_size=settings.view_size, seed=settings.seed)
        measurements = [
            measure_fitness(tokenizer, sample, view_size=settings.view_size, device=device) for tokenizer in tokenizers
        ]
        sheet = reconstruction_sheet(tokenizers, measurements, sample)
    report = FitnessReport(
        source=source,
        num_in_source=sample.num_in_source,
        num_drawn=len(sample),
        bad_samples=sample.bad_samples,
        settings=settings,
        labels=short_labels(names),
        fitness=[measurement.fitness for measurement in measurements],
        verdicts=[judge(measurement.fitness) for measurement in measurements],
        images_verdict=judge_images(len(sample.bad_samples), len(sample)),
        sheet=sheet,
    )
    if html is not None:
        write_output(html, page(report).encode())
    if out is not None:
        write_output(out, json_bytes(report.as_json()))
    return report


def check_view_size(tokenizers: Sequence[Tokenizer], view_size: int) -> None:
    """Insist on a size of views that all tokenizers can cut into tokens."""
    sides = {tokenizer.img_size: tokenizer.name for tokenizer in tokenizers if tokenizer.img_size is not None}
    if len(sides) > 1:
        (first, one), (second, other) = sorted(sides.items())[:2]
        raise InputError(
            f"{one} takes images of {first} px only and {other} of {second} px, so no views suit both; look at each by "
            "itself with: beit tokenizer report"
        )
    for side, name in sides.items():
        require(
            view_size == side,
            f"--view-size ({view_size}) must be {side}, all that {name} takes; add --view-size {side}",
        )
    factors = [tokenizer.downsampling for tokenizer in tokenizers]
    common = math.lcm(*factors)
    least = max(MIN_GRID_SIZE * max(factors), MIN_VIEW_PX)
    for tokenizer in tokenizers:
        if view_size % tokenizer.downsampling or view_size < least:
            nearest = max(round(view_size / common) * common, -(-least // common) * common)
            raise InputError(
                f"--view-size ({view_size}) must be a multiple of {tokenizer.downsampling}, the pixels per token of "
                f"{tokenizer.name}, and at least {least}; --view-size {nearest} suits "
                f"{'it' if len(tokenizers) == 1 else 'all tokenizers given'}"
            )


def short_labels(names: Sequence[str]) -> list[str]:
    """Return the last part of each name where that tells them apart, else the names."""
    last = [Path(name).name or name for name in names]
    return last if len(set(last)) == len(last) else list(names)

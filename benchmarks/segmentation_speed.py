"""How fast are masks made, file in and PNG out: ours against transformers' BeitForSemanticSegmentation, shared weights.

    python benchmarks/segmentation_speed.py
    python benchmarks/segmentation_speed.py --image-size 512x512,683x512 --threads 2 --rounds 5

Ours is what `beit predict` does with each image: read, decode, one or several windows or the image whole, PNG written;
transformers reads with Pillow and goes through its own processor, model and post-processing, and saves a PNG. With the
UPerNet head both have the same weights. Their answers are compared first, on the blocks that transformers takes, which
leave out the last one; timed is the head on the released code's blocks. The linear head stands on the last four.
All take turns in one process; rates are medians, ratios medians over rounds. Ours keeps the shape of an image, where
the processor squeezes it into a square: at 683x512 whole is a third more patches, and the windows are two.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from transformers import BeitForSemanticSegmentation, BeitImageProcessorPil

from beit.benchmarks.stores import write_scenes
from beit.benchmarks.turns import Turns, wait_for
from beit.common.pages.tables import aligned
from beit.common.runs.environment import environment
from beit.common.sources.index_build import build_index
from beit.common.vit.config import ModelConfig, Normalization, build_vit_config
from beit.finetune.data import image_name
from beit.finetune.masks.classes import MaskClasses, voc_colours
from beit.finetune.prediction.mask_files import mirrored_names
from beit.finetune.prediction.masks import MASKS, MaskWriter, read_ahead
from beit.finetune.segmentation.artifact import SegmentationInfo
from beit.finetune.segmentation.config import HeadConfig, HeadKind, InferenceConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import Segmenter
from beit.tests.parity.test_transformers_beit import reference_config
from beit.tests.parity.test_transformers_segmentation import reference_names

THEIRS, SAME = "transformers", "upernet on the same blocks"
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MODES = ("whole", "slide")
TOLERANCE = 1e-3
"""Of the largest logit, in float32; parity to 1e-5 layer by layer is a test."""


@click.command()
@click.option("--size", default="base", show_default=True, help="Of the encoder.")
@click.option("--img-size", default=512, show_default=True, metavar="PX", help="Side of a window.")
@click.option("--patch-size", default=16, show_default=True, metavar="PX")
@click.option("--classes", default=150, show_default=True, help="As in ADE20K.")
@click.option("--image-size", "image_sizes", default="512x512,683x512", show_default=True, help="Of the files.")
@click.option("--images", "num_images", default=4, show_default=True, help="Per turn.")
@click.option("--rounds", default=5, show_default=True, help="Beside one to warm up.")
@click.option("--threads", default=None, type=int, help="Of the processor.  [default: torch's]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(
    size: str,
    img_size: int,
    patch_size: int,
    classes: int,
    image_sizes: str,
    num_images: int,
    rounds: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Build the models, compare their answers, time everything in turns and print images per second."""
    if threads is not None:
        torch.set_num_threads(threads)
    models = build_models(size, img_size, patch_size, classes, torch.device(device))
    difference = compare(models, img_size)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            text: measure(models, Path(folder) / text, sides(text), num_images=num_images, rounds=rounds)
            for text in image_sizes.split(",")
        }
    result = {
        "environment": environment(),
        "threads": torch.get_num_threads(),
        "difference": difference,
        "images_per_second": {text: rates for text, (rates, _) in found.items()},
        "ratios": {text: ratios for text, (_, ratios) in found.items()},
    }
    click.echo(json.dumps(result) if as_json else as_table(result))


def sides(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT."""
    if not re.fullmatch(r"\d+x\d+", text):
        raise click.BadParameter(f"--image-size {text!r} must be WIDTHxHEIGHT")
    width, height = map(int, text.split("x"))
    return width, height


def build_models(
    size: str, img_size: int, patch_size: int, num_classes: int, device: torch.device
) -> dict[str, torch.nn.Module]:
    """Return transformers' model, ours with the same weights, and ours with a linear head, in eval mode."""
    torch.manual_seed(0)
    shape = build_vit_config(
        ModelConfig(size=size, pos_bias="per_block", drop_path=0.0),
        img_size=img_size,
        patch_size=patch_size,
        use_mask_token=False,
        init="finetune",
    )
    # transformers feeds its neck from the block before the one that is named, counted from the embedding.
    outputs = [shape.depth * number // 4 for number in (1, 2, 3, 4)]
    named = tuple(max(0, place - 2) for place in outputs)
    config = reference_config(
        shape, num_labels=num_classes, out_indices=outputs, pool_scales=[1, 2, 3, 6], use_auxiliary_head=False
    )
    theirs = BeitForSemanticSegmentation(config)
    models: dict[str, torch.nn.Module] = {THEIRS: theirs}
    looks: dict[str, tuple[HeadKind, tuple[int, ...] | None]] = {
        SAME: ("upernet", named),
        "upernet": ("upernet", None),
        "linear": ("linear", None),
    }
    for name, (kind, blocks) in looks.items():
        head = resolve_head(HeadConfig(kind=kind, blocks=blocks, norm="batch", auxiliary_weight=0.0), shape)
        model = Segmenter(shape, num_classes=num_classes, head=head)
        if name == SAME:
            missing, unexpected = theirs.load_state_dict(reference_names(model.state_dict()), strict=False)
            assert not unexpected and all(name.startswith("beit.pooler") for name in missing), (missing, unexpected)
        elif kind == "upernet":
            model.load_state_dict(models[SAME].state_dict())
        model.normalization = HALF
        models[name] = model
    return {name: model.eval().to(device) for name, model in models.items()}


@torch.inference_mode()
def compare(models: Mapping[str, torch.nn.Module], img_size: int) -> float:
    """Return the largest difference of the two UPerNets' logits, relative to the largest logit."""
    device = next(models[THEIRS].parameters()).device
    images = torch.randn(1, 3, img_size, img_size, generator=torch.Generator().manual_seed(1)).to(device)
    wanted = models[THEIRS](pixel_values=images).logits
    difference = float((models[SAME](images) - wanted).abs().max() / wanted.abs().max())
    assert difference < TOLERANCE, f"the models differ by {difference:.1e}"
    return difference


def measure(
    models: Mapping[str, Any], folder: Path, size: tuple[int, int], *, num_images: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the rates of all contestants on files of one size, and their ratios to transformers."""
    source = write_photos(folder, size, num_images)
    device = next(models[THEIRS].parameters()).device
    contestants = {THEIRS: Theirs(models[THEIRS], source, folder / "theirs")}
    for kind in ("upernet", "linear"):
        contestants |= {f"{kind}, {mode}": Ours(models[kind], source, folder / kind, mode) for mode in MODES}
    turns = Turns(contestants, device)
    turns.round(is_warm_up=True)
    for _ in range(rounds):
        turns.round()
    wait_for(device)
    return turns.medians(), {name: turns.ratio(name, THEIRS) for name in contestants if name != THEIRS}


def write_photos(folder: Path, size: tuple[int, int], count: int) -> Path:
    """Write photographs as JPEG files."""
    folder.mkdir()
    scenes = Path(write_scenes(folder / "scenes", count))
    photos = folder / "photos"
    photos.mkdir()
    for number, path in enumerate(sorted(scenes.rglob("*.jpg"))[:count]):
        with Image.open(path) as image:
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(photos / f"{number}.jpg", quality=92)
    return photos


class Theirs:
    """transformers as its documentation uses it, one image at a time."""

    def __init__(self, model: Any, source: Path, out: Path) -> None:
        self._model, self._out, self._paths = model, out, sorted(source.iterdir())
        side = model.config.image_size
        self._processor = BeitImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)
        self._palette = np.array(voc_colours(256), np.uint8).tobytes()
        out.mkdir()

    @torch.inference_mode()
    def __call__(self) -> int:
        """Segment all images."""
        for path in self._paths:
            image = Image.open(path).convert("RGB")
            inputs = self._processor(images=image, return_tensors="pt").to(self._model.device)
            outputs = self._model(**inputs)
            (ids,) = self._processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
            mask = Image.fromarray(ids.cpu().numpy().astype(np.uint8))
            mask.putpalette(self._palette)
            mask.save(self._out / f"{path.stem}.png")
        return len(self._paths)


class Ours:
    """What `beit predict` does between loading the model and the table."""

    def __init__(self, model: Segmenter, source: Path, out: Path, mode: str) -> None:
        self._out, self._index = out.with_name(f"{out.name}-{mode}"), build_index(source)
        self._names = mirrored_names(image_name(self._index, place) for place in range(len(self._index)))
        names = tuple(str(number) for number in range(model.num_classes))
        info = SegmentationInfo(
            head=model.head_config,
            classes=MaskClasses(names=names, colours=voc_colours(len(names))),
            inference=replace(InferenceConfig(), mode=mode, short_side=model.config.img_size),  # type: ignore[arg-type]
        )
        self._writer = MaskWriter(
            out=self._out,
            kinds=(MASKS,),
            model=model,
            info=info,
            legend={"mode": mode},
            values=tuple(range(len(names))),
        )

    @torch.inference_mode()
    def __call__(self) -> int:
        """Segment all images."""
        shutil.rmtree(self._out, ignore_errors=True)  # what is there would be kept
        for job in read_ahead(self._writer, self._index, self._names):
            self._writer.make(job)  # type: ignore[arg-type]
        return len(self._names)


def as_table(result: Mapping[str, Any]) -> str:
    """Return rates and ratios for reading."""
    rows = [["files", "contestant", "images/s", f"times {THEIRS}"]]
    for text, rates in result["images_per_second"].items():
        for name, rate in rates.items():
            ratio = result["ratios"][text].get(name)
            rows.append([text, name, f"{rate:.3g}", "" if ratio is None else f"{ratio:.2f}"])
    return aligned(rows, align="<<>>") + f"\nlargest difference of the UPerNets' logits: {result['difference']:.1e}"


if __name__ == "__main__":
    main()

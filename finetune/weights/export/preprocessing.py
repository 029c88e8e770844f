"""What goes into an exported model and what comes out, as a document for whoever has no beit: `preprocessing.json`.

Legend: B = batch, N = patches, D = embed_dim, V = visual words, C = classes, S = img_size.
"""

from __future__ import annotations

from typing import Any

from beit.common.images.decoding import GREY
from beit.common.storage.documents import Format
from beit.common.vit.description import EncoderConfig
from beit.common.vit.transform import MAX_ASPECT, default_crop_pct
from beit.finetune.segmentation.artifact import segmentation_info
from beit.finetune.weights.by_hand import decoding_steps
from beit.finetune.weights.export.source import ExportSource

FORMAT = Format("beit-preprocessing", 1)
IMAGES, MASK = "images", "bool_masked_pos"
"""Inputs."""


def describe(source: ExportSource) -> dict[str, Any]:
    """Return the document: how an image becomes input, what shapes inputs and outputs have, and what they mean."""
    shape = source.config.architecture
    side = shape.img_size
    is_grey = shape.in_chans == GREY
    inputs: dict[str, Any] = {
        IMAGES: {
            "shape": ["batch", shape.in_chans, side, side],
            "dtype": "float32",
            "layout": "NCHW",
            "channels": "grey" if is_grey else "RGB",
        }
    }
    if source.what == "masked":
        inputs[MASK] = {
            "shape": ["batch", shape.num_patches],
            "dtype": "bool",
            "meaning": "true where a patch is hidden from the model, row by row from the top left; all false for the "
            "features of whole images",
        }
    described = {
        **FORMAT.header(),
        "kind": source.what,
        "img_size": side,
        "trained_img_size": source.trained_img_size,
        "inputs": inputs,
        "outputs": {
            name: {"shape": ["batch", *size], "dtype": "float32", "meaning": meaning}
            for name, (size, meaning) in _outputs(source).items()
        },
        "preprocessing": _preprocessing(source),
    }
    if names := class_names(source):
        described["class_names"] = list(names)
    return described


def class_names(source: ExportSource) -> tuple[str, ...]:
    """Return the classes in the order of the logits; none of an encoder."""
    if source.what == "segmenter":
        return segmentation_info(source.config, origin=source.path).classes.names
    return source.config.class_names or ()


def _outputs(source: ExportSource) -> dict[str, tuple[list[int], str]]:
    """Return the size of every output, without the batch, and what it means, in the order of the model."""
    shape, classes = source.config.architecture, len(class_names(source))
    if source.what == "classifier":
        kind = "of each class by itself, 1/2 or more is a yes" if source.config.multi_label else "sum to 1"
        return {"logits": ([classes], "one per class"), "probabilities": ([classes], kind)}
    if source.what == "segmenter":
        head = segmentation_info(source.config, origin=source.path).head
        grid = [side * (1 if head.kind == "linear" else 4) for side in shape.grid_size]
        return {
            "logits": ([classes, *grid], "one per class, on the grid of the head"),
            "probabilities": ([classes, shape.img_size, shape.img_size], "of every pixel, sum to 1 over the classes"),
        }
    found = {
        "features": ([1 + shape.num_patches, shape.embed_dim], "after the last block: CLS, then patches row by row"),
        "pooled": ([shape.embed_dim], "mean of the patches' features"),
    }
    if source.what == "masked":
        words = len(source.state["lm_head.weight"])
        found["logits"] = ([shape.num_patches, words], "one per visual word, for every patch")
    return found


def decoding_note(config: EncoderConfig) -> list[str]:
    """Return a line on how files become the 8-bit pixels that a model takes, where that is not as usual."""
    how = config.decoding.in_words()
    said = (
        "the export takes 8-bit pixels, so this is to be done before it, by the steps that stand beside it (`decode`)"
    )
    return [f"{how}; {said}"] if how else []


def _preprocessing(source: ExportSource) -> dict[str, Any]:
    stored, side = source.config, source.config.architecture.img_size
    first: dict[str, Any] = {
        "orientation": "as EXIF says",
        "mode": "RGB, 8 bit; of transparent pixels the colour below; grey of 16 bit divided by 257",
    }
    if steps := decoding_steps(stored.decoding):
        first["mode"] = f"{'grey, one channel' if stored.architecture.in_chans == GREY else 'RGB'}, 8 bit, by `decode`"
        first |= {"decode": steps, "decoding": stored.decoding.as_json()}
    if stored.architecture.in_chans == GREY and stored.decoding.num_channels != GREY:
        first["mode"] += "; then grey, one channel, by ITU-R 601: (19595 R + 38470 G + 7471 B + 32768) >> 16"
    last = {
        "rescale_factor": 1 / 255,
        "mean": list(stored.normalization.mean),
        "std": list(stored.normalization.std),
    }
    if source.what == "segmenter":
        inference = segmentation_info(stored, origin=source.path).inference
        windows = {
            "size": side,
            "stride": max(1, side * 2 // 3) if inference.stride is None else inference.stride,
            "mode": inference.mode,
            "short_side": inference.short_side,
            "scales": list(inference.scales),
            "flip": inference.flip,
            "order": "of mode slide: windows start every stride pixels, the last of a row or column ends with the "
            "image; what is missing of an image smaller than a window is zero after the normalisation; logits are "
            "averaged where windows overlap, probabilities over scales and mirrored images",
        }
        return {**first, "windows": windows, **last}
    crop_pct = default_crop_pct(side) if stored.crop_pct is None else stored.crop_pct
    resize = {
        "short_side": int(side / crop_pct),
        "filter": "bicubic, antialiased, as Pillow's",
        "sides": "int(short_side * side / shorter side)",
        "max_aspect": MAX_ASPECT,
        "longer": "cut to the middle that has this aspect first",
    }
    return {**first, "resize": resize, "center_crop": [side, side], **last}

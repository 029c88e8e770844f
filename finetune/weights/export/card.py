"""The README.md beside an export for Hugging Face: how to load it, what to know, and where it comes from."""

from __future__ import annotations

import json
from typing import Any

from beit import __version__
from beit.common.images.decoding import GREY
from beit.common.vit.transform import MAX_ASPECT
from beit.finetune.segmentation.artifact import segmentation_info
from beit.finetune.weights.by_hand import decoding_steps
from beit.finetune.weights.export.image_processor import resized_side
from beit.finetune.weights.export.source import ExportOptions, ExportSource, What

_PIPELINES: dict[What, str] = {
    "encoder": "image-feature-extraction",
    "masked": "image-feature-extraction",
    "classifier": "image-classification",
    "segmenter": "image-segmentation",
}
_RESULTS: dict[What, str] = {
    "encoder": "features = model(**inputs).last_hidden_state  # (1, 1 + patches, channels), CLS first",
    "masked": "# mask: (1, patches) bool, True = hidden\n"
    "mask = torch.rand(1, (model.config.image_size // model.config.patch_size) ** 2) < 0.4\n"
    "logits = model(**inputs, bool_masked_pos=mask).logits  # (1, patches, visual words)",
    "classifier": "logits = model(**inputs).logits\nlabel = model.config.id2label[logits.argmax(-1).item()]",
    "segmenter": "outputs = model(**inputs)\n"
    "classes = processor.post_process_semantic_segmentation(outputs, [image.size[::-1]])[0]  # (height, width)",
}
_SHOWN = (
    "store",
    "store_sha256",
    "tokenizer",
    "tokenizer_fingerprint",
    "objective",
    "data",
    "data_sha256",
    "validation_data",
    "num_labels",
    "encoder",
    "imported_from",
    "family",
    "step",
    "total_steps",
)
"""Of what is known of a training, what the table says; all of it follows as a record."""


def model_card(
    source: ExportSource, options: ExportOptions, *, architecture: str, auto_class: str, notes: list[str]
) -> str:
    """Write the card.

    Args:
        source: The model.
        options: How it was exported.
        architecture: Class of transformers that holds it.
        auto_class: What loads it.
        notes: What was added or left out.
    """
    shape = source.config.architecture
    size, provenance = sum(tensor.numel() for tensor in source.state.values()), source.config.provenance
    parts = [
        _header(source),
        f"# {_plain(options.name)}",
        f"{architecture}: {shape.depth} blocks of {shape.embed_dim} channels, {shape.num_heads} heads, images of "
        f"{shape.img_size} px in patches of {shape.patch_size}, {_millions(size)} parameters, {options.dtype}. "
        f"Exported by beit {__version__}.",
        _how_to_load(source, options, auto_class),
        "## To know",
        "\n".join(f"- {line}" for line in [*_facts(source, options), *(_sentence(note) for note in notes)]),
        *_pixels(source),
        "## Where it comes from",
        *(_record(provenance) if provenance else ["Nothing is known of its training."]),
        "## License",
        "None is stated here. It is for you to choose, within what the data and the weights that this model started "
        "from allow; add `license:` to the header of this file.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(source: ExportSource) -> str:
    lines = ["library_name: transformers", f"pipeline_tag: {_PIPELINES[source.what]}", "tags:", "- beit", "- vision"]
    return "\n".join(["---", *lines, "---"])


def _how_to_load(source: ExportSource, options: ExportOptions, auto_class: str) -> str:
    extra = "import torch\n" if source.what == "masked" else ""
    folder = json.dumps(options.name, ensure_ascii=False)
    opened = '.convert("L")' if source.config.architecture.in_chans == GREY else ""
    made = "  # 8 bits, made by the steps under Pixels" if decoding_steps(source.config.decoding) else ""
    return (
        f"```python\n{extra}from PIL import Image\nfrom transformers import AutoImageProcessor, {auto_class}\n\n"
        f"processor = AutoImageProcessor.from_pretrained({folder})\n"
        f"model = {auto_class}.from_pretrained({folder})\n\n"
        f'image = Image.open("photo.jpg"){opened}{made}\n'
        'inputs = processor(images=image, return_tensors="pt")\n'
        f"{_RESULTS[source.what]}\n```"
    )


def _pixels(source: ExportSource) -> list[str]:
    """Return how files become what the processor takes, where it is not as every program does it."""
    config = source.config
    steps = decoding_steps(config.decoding)
    if not steps:
        return []
    return [
        "## Pixels",
        f"{config.decoding.in_words()}. The processor takes 8-bit pixels, and no program but beit makes them so by "
        "itself: do this before it, and save the result as PNG.",
        "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
    ]


def _facts(source: ExportSource, options: ExportOptions) -> list[str]:
    shape, config = source.config.architecture, source.config
    trained = source.trained_img_size
    lines = [
        f"It is for images of {shape.img_size} x {shape.img_size} px, which the processor makes. Others transformers "
        "takes without a word (a ViT with `interpolate_pos_encoding=True`) and stretches the positions by a rule of "
        "its own; `beit export --img-size` does it by ours."
    ]
    if trained != shape.img_size:
        lines.append(f"It was trained at {trained} px; positions were resized to {shape.img_size} px.")
    if source.what == "segmenter":
        settings = segmentation_info(config, origin=source.path).inference
        how = f"windows of {shape.img_size} px" if settings.mode == "slide" else "the image as a whole"
        lines.append(
            f"beit segments an image of any size by {how} at its own shape; the processor here squeezes it into one "
            "square, as the released models do. Of the same pixels the logits are the same."
        )
    else:
        lines.append(
            f"Pixels are those of beit: the short side to {resized_side(config)} px (bicubic, antialiased, Pillow), "
            "the central square, mean and std as in preprocessor_config.json. Where the margin is odd transformers "
            f"may cut one pixel further left or up. Of images longer than {MAX_ASPECT}:1 beit first takes the middle. "
            "With torchvision installed the processor resizes by its filter, which differs by a level here and there: "
            '`AutoImageProcessor.from_pretrained(..., backend="pil")` (transformers 5), or `use_fast=False` (4).'
        )
    lines += [
        "beit turns images as their EXIF data say; a processor takes them as they are: "
        "`PIL.ImageOps.exif_transpose(image)` first.",
        'It sees one channel: hand the processor grey images, `image.convert("L")`.'
        if shape.in_chans == GREY
        else "Images are made RGB (`do_convert_rgb`). Transparency is laid on white by transformers 5; "
        + (
            "beit keeps the colour below."
            if config.decoding.alpha == "drop"
            else "step by step as below, nothing is left."
        ),
        "Attention maps (`output_attentions=True`) need "
        '`from_pretrained(..., attn_implementation="eager")`; without it they come back empty.',
    ]
    if source.what == "masked":
        lines.append("For features load it with `AutoModel`, which leaves the head of visual words out and says so.")
    if options.dtype == "bfloat16" and shape.pos_bias != "none":
        lines.append(
            "bfloat16 keeps 8 bits: of a learned position bias above 128 it loses differences below 1. Export float32 "
            "unless memory decides."
        )
    return lines


def _record(provenance: dict[str, Any]) -> list[str]:
    return [
        _table(provenance),
        "The whole record. Look through it before you publish: it names folders of the machine it was trained on.",
        f"~~~json\n{json.dumps(provenance, indent=2, sort_keys=True)}\n~~~",
    ]


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"


def _table(provenance: dict[str, Any]) -> str:
    """Return what is known of the training, and of the encoder that it began with, as a table."""
    rows = [(name, provenance[name]) for name in _SHOWN if provenance.get(name) not in (None, "", {})]
    metrics = provenance.get("metrics")
    if isinstance(metrics, dict):
        rows += [(name, value) for name, value in sorted(metrics.items()) if isinstance(value, int | float)]
    earlier = provenance.get("encoder_provenance")
    if isinstance(earlier, dict):
        rows += [(f"encoder: {name}", earlier[name]) for name in _SHOWN if earlier.get(name) not in (None, "", {})]
    cells = [f"| {_plain(name)} | {_plain(_short(value))} |" for name, value in rows]
    return "\n".join(["| what | value |", "| --- | --- |", *cells])


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """Return a text as Markdown shows it, in one line of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."

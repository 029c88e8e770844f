"""The commands `beit import` and `beit export`: weights of other projects in, models of ours out.

What they do is in `import_model.py` and `export/exporter.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from beit.cli_options import say_written

TARGETS = {"official": "official", "hf": "huggingface", "timm": "timm", "onnx": "onnx"}
"""Forms that a model can be exported in, and the module of each."""


@click.command("import")
@click.argument("source", metavar="FILE|FOLDER|URL|hf://OWNER/NAME")
@click.argument("encoder", type=click.Path(path_type=Path))
@click.option("--num-heads", type=click.IntRange(min=1), metavar="N", help="Attention heads, if the file cannot tell.")
@click.option(
    "--normalization",
    type=click.Choice(["imagenet", "inception"]),
    help="How the model's pixels were normalised, if the file cannot tell; inception is mean and std 0.5.",
)
@click.option(
    "--weights",
    type=click.Choice(["ema", "plain"]),
    help="Of a training checkpoint, the running average or the weights themselves; by default the average if there is "
    "one.",
)
@click.option(
    "--pos-resize",
    type=click.Choice(["bicubic", "dino", "timm"]),
    help="By whose rule absolute positions are resized, if the file cannot tell; bicubic is that of MAE and DeiT.",
)
@click.option(
    "--prefix",
    metavar="P",
    help="What stands before the names of the encoder's tensors, where it is not known, such as visual.trunk.",
)
@click.option(
    "--head-blocks",
    type=click.Choice(["transformers", "released"]),
    help="By whose reading of out_indices a Hugging Face segmentation model is taken; they count differently.",
)
@click.option(
    "--in-chans",
    type=click.Choice(["1", "3"]),
    callback=lambda context, option, value: None if value is None else int(value),
    help="Channels that the encoder is to see: 1 makes one for grey images of weights for RGB, kernels summed, which "
    "leaves what it says of grey images unchanged. Left out, as many as in the file.",
)
@click.option("--sha256", metavar="DIGEST", help="That the file must have; its first 8 digits will do.")
def import_command(source: str, encoder: Path, sha256: str | None, **given: Any) -> None:
    """Turn the weights of somebody else into the folder ENCODER, for --encoder and beit predict --features.

    A file is an official BEiT .pth; weights of DINO, DINOv2 without registers, iBOT, MAE, MoCo v3, DeiT, DeiT III or a
    ViT of timm (.pth, .bin, .safetensors), or a training checkpoint of theirs. A folder is one of Hugging Face (BEiT,
    data2vec, ViT, ViTMAE, DeiT, DINOv2) or timm, or what beit export wrote. An address is fetched first; hf:// names a
    model of the Hugging Face hub, with @REVISION if wanted. Nothing in a file is executed. Every tensor must be known
    and of the right shape. A head of classes, visual words or masks is kept. What is a guess is called one, with the
    option that sets it.

    \b
    Example:
      beit import beit_base_patch16_224_pt22k.pth encoders/beit-base
      beit import hf://facebook/dinov2-base encoders/dinov2-base
    """
    from beit.finetune.weights.import_model import import_from

    imported = import_from(source, encoder, sha256=sha256, **given)
    click.echo(imported.summary)
    say_written(encoder)


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL|RUN")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", "target", type=click.Choice(list(TARGETS)), required=True, help="Whose form it is to have.")
@click.option(
    "--img-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Side of the images it is to take, in pixels, if others than in training; positions are resized.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the weights. A learned position bias in bfloat16 loses what differs by less than 1 in 128 of its size.",
)
def export_command(model: Path, out: Path, target: str, img_size: int | None, dtype: Any) -> None:
    """Write an encoder or a fine-tuned MODEL into the folder OUT, in the form of another project.

    OUT must be new or empty. What was written is loaded with the library that it is for, where that is installed, and
    run on the same images as MODEL itself; the largest difference of every output is shown, and if it is too large
    nothing is left.

    \b
    Example:
      beit export runs/flowers/model exported/flowers --to hf
    """
    from beit.finetune.weights.export.exporter import export_model

    exported = export_model(model, out, module=TARGETS[target], img_size=img_size, dtype=dtype)
    click.echo(exported.summary)
    say_written(*exported.files)

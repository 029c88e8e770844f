"""What the shapes of tensors do not tell: attention heads, the scale of pixels, how positions are resized.

Each is looked for in what came with the weights. Where nothing tells, the usual is taken, and `Finding.option` says how
to set another, since it is a guess. What the shapes do tell is `import_model.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

from beit.common.errors import InputError, require
from beit.common.images.decoding import GREY, RGB
from beit.common.vit.config import Normalization, PosResize
from beit.finetune.weights.import_files import ForeignWeights
from beit.finetune.weights.import_names import NamedTensors

Value = TypeVar("Value")
NormalizationName = Literal["imagenet", "inception"]

NORMALIZATIONS: dict[NormalizationName, Normalization] = {
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""The two that are in use."""
_UNSCALED = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_HEAD_DIM = 64
"""Channels of an attention head in almost every released ViT."""
_SIXTEEN_HEADS = (1280, 1408)
"""Widths of huge and giant models, which have 16 heads instead."""
_BEIT_V2_NAME = re.compile(r"beit[-_.]?(v2|2)", re.IGNORECASE)
_DINO_NAME = re.compile(r"(?<![a-z])(dino|ibot)(?!v?\d)", re.IGNORECASE)


class Finding(NamedTuple, Generic[Value]):
    """A value and where it is from."""

    value: Value
    """What was found."""
    why: str
    """Where, for the user."""
    option: str | None = None
    """The option that sets another, where this is a guess; None where it is known."""

    def __str__(self) -> str:
        """Say it, a guess as one."""
        return self.why if self.option is None else f"a guess: {self.why}; {self.option}"


class Findings(NamedTuple):
    """What the shapes do not tell."""

    num_heads: Finding[int]
    """Attention heads."""
    normalization: Finding[Normalization]
    """Scale of the pixels."""
    pos_resize: Finding[PosResize]
    """Whose rule resizes absolute positions."""
    blocks: Finding[tuple[int, ...]] | None = None
    """That a segmentation head sees; None where there is none."""
    channels: Finding[int] | None = None
    """That the encoder sees, where they are others than the file's."""


def find_num_heads(named: NamedTensors, config: Mapping[str, Any], given: int | None, *, origin: str) -> Finding[int]:
    """Count attention heads: columns of a relative position table, else what the folder says, else one per 64 channels.

    Args:
        named: The tensors.
        config: config.json of a folder.
        given: What the user says.
        origin: Named in messages.
    """
    token = named.tensors["cls_token"]
    require(token.ndim == 3, f"{origin}: cls_token has {token.ndim} dimensions, must have 3")
    table, embed_dim = named.position_table, token.shape[-1]
    if table is not None:
        heads = int(table.shape[1])
        require(
            given in (None, heads), f"{origin} has {heads} attention heads, as its position table shows, not {given}"
        )
        return Finding(heads, "from the relative position table")
    if given is not None:
        return Finding(given, "as given")
    arguments = config.get("model_args")
    for listed in (
        config.get("num_attention_heads"),
        arguments.get("num_heads") if isinstance(arguments, dict) else None,
    ):
        if isinstance(listed, int) and listed > 0:
            return Finding(listed, "from the folder")
    if embed_dim in _SIXTEEN_HEADS:
        return Finding(16, f"16, as released models of {embed_dim} channels have", "--num-heads sets it")
    require(
        embed_dim % _HEAD_DIM == 0,
        f"{origin}: the number of attention heads is not in the file, and {embed_dim} channels are no multiple of "
        f"{_HEAD_DIM}; give --num-heads",
    )
    other = ", where the small one of MoCo v3 has 12" if embed_dim == 384 else ""
    why = f"one per {_HEAD_DIM} channels, since the file does not tell{other}"
    return Finding(embed_dim // _HEAD_DIM, why, "--num-heads sets it")


def find_normalization(
    named: NamedTensors, foreign: ForeignWeights, given: NormalizationName | None, *, origin: str
) -> Finding[Normalization]:
    """Decide how pixels are scaled: given, else from what came with the weights, else the usual of such weights.

    Source: the data pipelines of the released BEiT and BEiT v2 (`imagenet_default_mean_and_std`).
    """
    if given is not None:
        return Finding(NORMALIZATIONS[given], f"{given}, as given")
    written = _of_folder(foreign, origin) or _of_arguments(foreign.args)
    if written is not None:
        return written
    if named.is_beit_v2:
        return Finding(NORMALIZATIONS["imagenet"], "imagenet, as BEiT v2 is trained, whose cls_pt_layers the file has")
    is_known = foreign.config.get("model_type") in ("vit_mae", "dinov2")
    if named.family == "MAE" or named.is_dino or named.is_moco or is_known:
        return Finding(NORMALIZATIONS["imagenet"], "imagenet, the only one of the code that trains such weights")
    if named.family == "BEiT" and _BEIT_V2_NAME.search(_name(foreign, origin)):
        why = "imagenet, as BEiT v2 has, after the file's name"
        return Finding(NORMALIZATIONS["imagenet"], why, "--normalization inception sets mean and std 0.5")
    if named.family == "BEiT" and "pos_embed" not in named.tensors:
        why = "inception (mean and std 0.5), as the released BEiTs have; not so BEiT v2, or BEiT of ImageNet-1k"
        return Finding(NORMALIZATIONS["inception"], why, "--normalization imagenet sets theirs")
    why = "imagenet, as DINO, MAE, MoCo v3 and DeiT have; many supervised ViTs of timm and Google have inception"
    return Finding(NORMALIZATIONS["imagenet"], why, "--normalization inception sets that")


def find_pos_resize(
    named: NamedTensors, foreign: ForeignWeights, given: PosResize | None, *, origin: str
) -> Finding[PosResize]:
    """Decide by whose rule absolute positions are resized; docs/finetuning.md has the table of them."""
    if given is not None:
        return Finding(given, f"{given}, as given")
    rules: tuple[PosResize, ...] = get_args(PosResize)
    for rule in rules:
        if foreign.config.get("pos_resize") == rule:
            return Finding(rule, f"{rule}, as its export says")
    if "pos_embed" not in named.tensors or named.family in ("BEiT", "MAE") or "model_type" in foreign.config:
        return Finding("bicubic", "bicubic, as the code of such weights does")
    if "architecture" in foreign.config or "pretrained_cfg" in foreign.config:
        return Finding("timm", "timm, whose folder this is")
    if named.is_dino:
        return Finding("dino", "dino, which the file shows (its head, or the mask token of DINOv2)")
    others = "--pos-resize " + "|".join(get_args(PosResize)) + " sets it"
    if _DINO_NAME.search(_name(foreign, origin)):
        return Finding("dino", "dino, after the file's name", others)
    return Finding("bicubic", "bicubic, as MAE and DeiT do; DINO and timm have rules of their own", others)


def _of_folder(foreign: ForeignWeights, origin: str) -> Finding[Normalization] | None:
    processor, cfg = foreign.preprocessor, foreign.config.get("pretrained_cfg")
    factor = processor.get("rescale_factor", 1 / 255)
    require(
        processor.get("do_rescale", True) is not False and isinstance(factor, float) and abs(factor * 255 - 1) < 1e-3,
        f"{origin}: preprocessor_config.json scales pixels by another factor than 1/255, and beit does not",
    )
    if processor.get("do_normalize") is False:
        return Finding(_UNSCALED, "none, after preprocessor_config.json")
    for source in (processor, cfg if isinstance(cfg, Mapping) else {}):
        mean, std = source.get("image_mean", source.get("mean")), source.get("image_std", source.get("std"))
        if mean is not None and std is not None and _is_scale(mean) and _is_scale(std) and len(mean) == len(std):
            return Finding(_normalization(mean, std), "from the folder")
    return None


def _of_arguments(args: Mapping[str, Any]) -> Finding[Normalization] | None:
    """Read what the training scripts of BEiT (a flag) and of timm (numbers) were called with."""
    flag = args.get("imagenet_default_mean_and_std")
    if isinstance(flag, int) and flag in (0, 1):
        name: NormalizationName = "imagenet" if flag else "inception"
        return Finding(NORMALIZATIONS[name], f"{name}, after imagenet_default_mean_and_std of its training")
    if _is_scale(args.get("mean")) and _is_scale(args.get("std")) and len(args["mean"]) == len(args["std"]):
        return Finding(_normalization(args["mean"], args["std"]), "from the arguments of its training")
    return None


def _normalization(mean: Any, std: Any) -> Normalization:
    if not all(value > 0 for value in std):
        raise InputError(f"the std of the pixels {list(std)} must be above 0; give --normalization")
    return Normalization(tuple(map(float, mean)), tuple(map(float, std)))


def _is_scale(values: Any) -> bool:
    is_list = isinstance(values, list | tuple) and len(values) in (GREY, RGB)
    return is_list and all(isinstance(value, int | float) for value in values)


def _name(foreign: ForeignWeights, origin: str) -> str:
    """Return what tells by its name: the file or folder, and the architecture that a folder names."""
    return f"{re.split(r'[/]', origin.rstrip('/'))[-1]} {foreign.config.get('architecture', '')}"

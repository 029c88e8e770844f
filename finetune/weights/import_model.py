"""`beit import`: weights of somebody else become an encoder folder that every later command takes.

Reading is `import_files.py`, naming `import_names.py`, and what no shape tells `import_findings.py`. Here is what the
tensors make up: the architecture they imply, which is then checked tensor by tensor, the head that stays, and where
everything came from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from beit import __version__
from beit.common.encoder import load_encoder, save_model
from beit.common.errors import InputError, require
from beit.common.images.decoding import GREY, RGB
from beit.common.runs.outputs import check_new_folder
from beit.common.storage.files import atomic_folder
from beit.common.storage.tensor_check import check_tensors
from beit.common.vit.channels import grey_projection
from beit.common.vit.config import PosBias, PosResize, ViTConfig, for_channels
from beit.common.vit.description import EncoderConfig
from beit.common.vit.vit import VisionTransformer
from beit.finetune.segmentation.artifact import SegmentationInfo
from beit.finetune.weights.fetch import Fetched, fetch, is_address, require_sha256
from beit.finetune.weights.import_exported import decoding_of, facts_of_use, filler_of
from beit.finetune.weights.import_files import no_average, read_foreign
from beit.finetune.weights.import_findings import (
    Finding,
    Findings,
    NormalizationName,
    find_normalization,
    find_num_heads,
    find_pos_resize,
)
from beit.finetune.weights.import_names import NamedTensors, official_names
from beit.finetune.weights.import_prefixes import WeightsKind
from beit.finetune.weights.import_segmenter import (
    HeadBlocks,
    expected_heads,
    find_segmentation,
    has_segmentation_head,
)
from beit.finetune.weights.import_summary import describe_import

_KINDS = ("beit", "data2vec-vision", "vit", "vit_mae", "deit", "dinov2", "upernet")
"""`model_type` of the Hugging Face models whose computation is ours."""
_OTHER_KINDS = {
    "dinov2_with_registers": "it has registers",
    "dinov3_vit": "it has registers and rotary positions (RoPE)",
    "dinov3_convnext": "it is a convolutional network",
    "eva": "it has rotary positions (RoPE) and a gated MLP",
    "clip": "it has a norm before its blocks",
    "siglip": "it has no class token",
    "swin": "its attention is in windows",
}
"""Of others, why not."""
_LAYER_SCALE = 0.1
"""Recorded as the initial layer scale where there is one; nothing but its presence matters once there are weights."""
_HUGGING_FACE_EPS = 1e-12
"""layer_norm_eps of a Hugging Face folder that names none: the default of all kinds but DINOv2."""
_DINO_V2_EPS = 1e-6
_COUNTER = ".num_batches_tracked"
_KERNELS, _BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"


class Imported(NamedTuple):
    """An imported encoder."""

    config: EncoderConfig
    """Its description."""
    summary: str
    """What was found, for the user."""


def import_from(source: str, directory: Path, *, sha256: str | None = None, **given: Any) -> Imported:
    """Do what `import_encoder` does, of a path or an address, which is fetched first.

    Args:
        source: A file, a folder, an address of a file, or hf://OWNER/NAME[@REVISION].
        directory: The encoder.
        sha256: That the file must have.
        given: As `import_encoder` takes it.
    """
    check_new_folder("ENCODER", directory)
    found = fetch(source) if is_address(source) else Fetched(path=Path(source), origin=source, revision=None)
    if sha256 is not None:
        require_sha256(found.path, sha256)
    return import_encoder(found.path, directory, origin=found.origin, revision=found.revision, **given)


def import_encoder(
    source: Path,
    directory: Path,
    *,
    num_heads: int | None = None,
    normalization: NormalizationName | None = None,
    weights: WeightsKind | None = None,
    pos_resize: PosResize | None = None,
    prefix: str | None = None,
    head_blocks: HeadBlocks | None = None,
    in_chans: int | None = None,
    origin: str | None = None,
    revision: str | None = None,
) -> Imported:
    """Convert a weight file or folder into an encoder in a new or empty folder, and load that again.

    Where neither the user nor the file tells, the usual is taken, and the summary and the provenance say so.

    Args:
        source: What somebody else wrote.
        directory: The encoder.
        num_heads: Attention heads, if the file cannot tell.
        normalization: Scale of the pixels, if the file cannot tell.
        weights: Of a training checkpoint, the running average or the plain weights; by default the average if there is
            one.
        pos_resize: By whose rule absolute positions are resized, if the file cannot tell.
        prefix: What stands before the names of the encoder, where it is not known.
        head_blocks: By whose reading of `out_indices` the blocks of a Hugging Face segmentation head are taken.
        in_chans: Channels that the encoder is to see; 1 makes a grey one of weights for RGB, see `grey_projection`.
        origin: The address that it was fetched from, for the provenance.
        revision: Of that, as the address was resolved.
    """
    check_new_folder("ENCODER", directory)
    foreign = read_foreign(source, weights)
    whole, backbone = foreign.config, foreign.config.get("backbone_config")
    _require_kind(whole, source)
    if isinstance(backbone, dict):  # of UperNet, whose own part says the head
        _require_kind(backbone, source)
        foreign = replace(foreign, config={**whole, **backbone, "id2label": whole.get("id2label")})
    named = official_names(foreign.tensors, str(source), weights=None if foreign.is_average else weights, prefix=prefix)
    if weights == "ema" and not foreign.is_average and named.trunk.kind != "ema":
        raise no_average(source)
    named = _without_odd_head(named)
    if filler := filler_of(named.tensors, whole):
        kept = {name: tensor for name, tensor in named.tensors.items() if name not in filler}
        named = replace(named, tensors=kept, left_out=[*named.left_out, *filler])
    tensors = named.tensors
    for name in ("cls_token", _KERNELS, "blocks.0.mlp.fc1.weight", "blocks.0.norm1.weight"):
        require(name in tensors, f"{source} lacks the tensor {name!r} of every encoder; it is of another kind of model")
    findings = Findings(
        num_heads=find_num_heads(named, foreign.config, num_heads, origin=str(source)),
        normalization=find_normalization(named, foreign, normalization, origin=origin or str(source)),
        pos_resize=find_pos_resize(named, foreign, pos_resize, origin=origin or str(source)),
    )
    named, findings = _with_channels(named, findings, in_chans, origin=str(source))
    tensors = named.tensors
    architecture = infer_architecture(named, foreign.config, findings, origin=str(source))
    segmentation = None
    if has_segmentation_head(tensors):
        segmentation, blocks = find_segmentation(
            tensors, architecture, foreign.config, head_blocks, meta=foreign.args, origin=str(source)
        )
        findings = findings._replace(blocks=blocks)
    else:
        require(head_blocks is None, f"{source} has no segmentation head; leave --head-blocks out")
    tensors = tensors | _check(tensors, architecture, source, segmentation)
    class_names, pooling = _head(tensors, foreign.config, str(source))
    use = facts_of_use(foreign.config, architecture.depth, str(source))
    provenance: dict[str, Any] = {
        "imported_from": origin or str(source),
        **({"revision": revision} if revision else {}),
        "sha256": foreign.sha256,
        "checkpoint_key": foreign.container,
        "prefix": named.trunk.prefix,
        "not_taken": [*foreign.beside, *named.trunk.beside],
        "family": named.family,
        "findings": {name: str(finding) for name, finding in findings._asdict().items() if finding is not None},
        "left_out": named.left_out,
        "made_up": named.made_up,
        "beit_version": __version__,
    }
    config = EncoderConfig(
        architecture=architecture,
        normalization=findings.normalization.value,
        decoding=decoding_of(foreign.config, architecture.in_chans, str(source)),
        task="segmentation" if segmentation else "pretrain" if class_names is None else "classification",
        vocab_size=len(tensors["lm_head.weight"]) if "lm_head.weight" in tensors else None,
        class_names=class_names,
        pooling=pooling,
        **(use if class_names is not None else use | {"multi_label": False}),
        segmentation=None if segmentation is None else segmentation.to_dict(),
        provenance=provenance,
    )
    with atomic_folder(directory) as folder:
        save_model(folder, tensors, config)
        load_encoder(folder)
    return Imported(config, describe_import(config, named, foreign, findings))


def _without_odd_head(named: NamedTensors) -> NamedTensors:
    """Leave out a head on CLS and the mean of the patches, unless one norm stands before both, as in DINOv2."""
    head, token = named.tensors.get("head.weight"), named.tensors.get("cls_token")
    if head is None or token is None or head.ndim != 2 or head.shape[1] != 2 * token.shape[-1]:
        return named
    if named.family != "BEiT" and "norm.weight" in named.tensors and "fc_norm.weight" not in named.tensors:
        return named
    tensors = {name: tensor for name, tensor in named.tensors.items() if not name.startswith("head.")}
    odd = [name for short, name in named.trunk.names.items() if short.startswith(("head.", "classifier."))]
    return replace(named, tensors=tensors, left_out=[*named.left_out, *odd])


def _with_channels(
    named: NamedTensors, findings: Findings, wanted: int | None, *, origin: str
) -> tuple[NamedTensors, Findings]:
    """Return weights and normalisation for the channels that are wanted: the file's, or one made of its three."""
    _, _, found = _patches(named.tensors[_KERNELS], origin)
    scale = findings.normalization
    of_file = for_channels(scale.value, found)
    if wanted in (None, found):
        return named, findings._replace(normalization=scale._replace(value=of_file))
    require(
        (found, wanted) == (RGB, GREY),
        f"{origin} is of a model for grey images (one channel); leave --in-chans {wanted} out: images in colour are "
        "then read as their luma",
    )
    require(_BIAS in named.tensors, f"{origin} lacks the tensor {_BIAS!r} of every encoder; it is of another kind")
    weight, bias, grey = grey_projection(named.tensors[_KERNELS], named.tensors[_BIAS], of_file)
    channels = Finding(
        GREY,
        f"1, as asked for: the kernels of 3 summed; mean {grey.mean[0]:.4g} and std {grey.std[0]:.4g} of grey are "
        "those of the file by the weights of luma (ITU-R 601), which leaves what it says of grey images unchanged",
    )
    return (
        replace(named, tensors=named.tensors | {_KERNELS: weight, _BIAS: bias}),
        findings._replace(normalization=scale._replace(value=grey), channels=channels),
    )


def infer_architecture(named: NamedTensors, config: Mapping[str, Any], findings: Findings, *, origin: str) -> ViTConfig:
    """Derive the shape of the model from its tensors, Hugging Face's config.json, if any, and what else was found."""
    tensors = named.tensors
    embed_dim, patch_size, in_chans = _patches(tensors[_KERNELS], origin)
    pos_bias: PosBias = "none" if (table := named.position_table) is None else "per_block"
    if "rel_pos_bias.relative_position_bias_table" in tensors:
        pos_bias = "shared"
    gamma = tensors.get("blocks.0.gamma_1")
    scale = config.get("layer_scale_init_value", config.get("layerscale_value"))
    require(
        scale is None or (type(scale) in (int, float) and 0 <= scale < math.inf),
        f"{origin}: the initial layer scale ({scale}) must be a number; fetch config.json again",
    )
    require(
        isinstance(config.get("final_norm", False), bool),
        f"{origin} is damaged: final_norm cannot be what an export says; export it again",
    )
    depth = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))
    side = _grid_side(tensors.get("pos_embed"), table, config, patch_size, origin)
    eps = config.get("layer_norm_eps", _eps_of_kind(config))
    require(isinstance(eps, float) and eps > 0, f"{origin}: layer_norm_eps ({eps}) must be a number above 0")
    return ViTConfig(
        img_size=side * patch_size,
        patch_size=patch_size,
        in_chans=in_chans,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=findings.num_heads.value,
        mlp_ratio=len(tensors["blocks.0.mlp.fc1.weight"]) / embed_dim,
        qkv_bias="blocks.0.attn.q_bias" in tensors,
        init_values=0.0 if gamma is None else scale or _LAYER_SCALE,
        drop_path=0.0,
        use_abs_pos_emb="pos_embed" in tensors,
        pos_bias=pos_bias,
        use_mask_token="mask_token" in tensors,
        final_norm=config.get(
            "final_norm", "norm.weight" in tensors and (named.family != "BEiT" or _has_own_norm(tensors, config))
        ),
        layer_norm_eps=eps,
        pos_resize=findings.pos_resize.value,
    )


def _eps_of_kind(config: Mapping[str, Any]) -> float:
    return _HUGGING_FACE_EPS if config.get("model_type", "dinov2") != "dinov2" else _DINO_V2_EPS


def _has_own_norm(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    """Tell a BeitModel whose sequence passes a norm: one on CLS, without a head that the norm would belong to."""
    has_head = any(f"{name}.weight" in tensors for name in ("head", "lm_head")) or has_segmentation_head(tensors)
    return config.get("model_type") == "beit" and config.get("use_mean_pooling") is False and not has_head


def _patches(projection: Tensor, origin: str) -> tuple[int, int, int]:
    """Return width, patch size and channels after the weight of the patch convolution."""
    require(projection.ndim == 4, f"{origin}: patch_embed.proj.weight has {projection.ndim} dimensions, must have 4")
    embed_dim, in_chans, height, width = projection.shape
    require(height == width, f"{origin} has patches of {height} x {width} px, and a beit encoder has square ones")
    require(
        in_chans in (GREY, RGB),
        f"{origin} is of a model for images of {in_chans} channels, and beit reads images as RGB or grey; give weights "
        "for 3 channels or 1",
    )
    return embed_dim, height, in_chans


def _require_kind(config: Mapping[str, Any], source: Path) -> None:
    arguments = config.get("model_args")
    kind = config.get("model_type")
    activation = config.get("hidden_act", arguments.get("act_layer", "gelu") if isinstance(arguments, dict) else "gelu")
    if kind is not None and kind not in _KINDS:
        kind = str(kind)
        why = f" ({_OTHER_KINDS[kind]})" if kind in _OTHER_KINDS else ""
        raise InputError(f"{source} holds a model of type {kind!r}{why}; known are {', '.join(_KINDS)}")
    if config.get("use_swiglu_ffn"):
        raise InputError(f"{source} has a gated MLP (SwiGLU), as DINOv2 giant; a beit encoder has no place for it")
    if activation != "gelu":
        raise InputError(f"{source} has hidden_act {activation!r}, and a beit encoder computes the exact gelu")


def _grid_side(
    pos_embed: Tensor | None, table: Tensor | None, config: Mapping[str, Any], patch_size: int, origin: str
) -> int:
    """Return patches per side, from whatever depends on them."""
    if pos_embed is not None:
        require(pos_embed.ndim == 3, f"{origin}: pos_embed has {pos_embed.ndim} dimensions, must have 3")
        patches = pos_embed.shape[1] - 1
        side = math.isqrt(max(patches, 0))
        require(
            side * side == patches and side > 0,
            f"{origin}: pos_embed has {pos_embed.shape[1]} positions, must be CLS and a square of patches",
        )
        return side
    if table is not None:
        offsets = len(table) - 3
        width = math.isqrt(max(offsets, 0))
        require(
            width * width == offsets and width % 2 == 1,
            f"{origin}: the relative position table has {len(table)} rows, which no square grid of patches gives",
        )
        return (width + 1) // 2
    img_size = config.get("image_size", 224)
    require(
        isinstance(img_size, int) and img_size >= patch_size and img_size % patch_size == 0,
        f"{origin}: image_size ({img_size}) must be a multiple of the patch size ({patch_size})",
    )
    return int(img_size // patch_size)


def _check(
    tensors: Mapping[str, Tensor], architecture: ViTConfig, source: Path, segmentation: SegmentationInfo | None
) -> dict[str, Tensor]:
    """Compare every tensor with the architecture; nothing may be missing, of another shape, or not finite.

    Returns:
        Counters of batch norms that are missing, which decide nothing.
    """
    dim = architecture.embed_dim
    with torch.device("meta"):
        expected = dict(VisionTransformer(architecture).state_dict())
        for name in ("norm", "fc_norm"):
            if f"{name}.weight" in tensors:
                expected |= {f"{name}.weight": torch.empty(dim), f"{name}.bias": torch.empty(dim)}
        for name in ("lm_head", "head"):
            if f"{name}.weight" in tensors:
                rows = len(tensors[f"{name}.weight"])
                width = 2 * dim if name == "head" and _is_double(tensors) else dim
                expected |= {f"{name}.weight": torch.empty(rows, width), f"{name}.bias": torch.empty(rows)}
    if segmentation is not None:
        expected |= expected_heads(architecture, segmentation)
    counters = {name for name in expected if name.endswith(_COUNTER)}
    for name in counters & tensors.keys():
        is_count = tensors[name].ndim == 0 and not tensors[name].is_floating_point()
        require(is_count, f"{source}: {name} must be a whole number; it is of another network")
    floats = {name: tensor for name, tensor in tensors.items() if name not in counters}
    check_tensors(floats, {name: value for name, value in expected.items() if name not in counters}, source)
    return {name: torch.tensor(0) for name in counters - tensors.keys()}


def _is_double(tensors: Mapping[str, Tensor]) -> bool:
    """Tell a head on CLS and the mean of the patches side by side."""
    head = tensors["head.weight"]
    return head.ndim == 2 and head.shape[1] == 2 * tensors["cls_token"].shape[-1]


def _head(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], origin: str
) -> tuple[tuple[str, ...] | None, str | None]:
    """Return class names and pooling of a classification head; None and None where there is none."""
    if "head.weight" not in tensors:
        return None, None
    pooling = "mean" if "fc_norm.weight" in tensors else "cls_mean" if _is_double(tensors) else "cls"
    pool = str(config.get("global_pool", ""))
    if {"avg": "mean", "token": "cls"}.get(pool, pooling) != pooling or pool not in ("", "avg", "token"):
        raise InputError(
            f"{origin} pools by {pool!r}, for which {'norm' if pooling == 'cls' else 'fc_norm'}.* stands in another "
            "place than in a beit classifier; remove the head from the weights to use their encoder"
        )
    count = len(tensors["head.weight"])
    require(count > 0, f"{origin} has a head of no classes; remove head.* from the weights to use their encoder")
    listed = config.get("id2label")
    names = [str(number) for number in range(count)]
    if isinstance(listed, Mapping) and len(listed) == count and all(name in listed for name in names):
        names = [str(listed[name]) for name in names]
    # ImageNet has two cranes and two maillots; classes are told apart by name.
    unique = tuple(f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names))
    return unique, pooling

"""Target timm: `model.safetensors` and a `config.json` that `timm.create_model` takes.

An encoder with a last norm of its own and absolute positions only (DINO, MAE, DeiT) is timm's VisionTransformer, every
other one its Beit. Both are asked for by a name; what differs from what the name stands for is in `model_args`.

    timm.create_model("local-dir:OUT", pretrained=True)
    timm.create_model(config["architecture"], checkpoint_path="OUT/model.safetensors",
                      num_classes=config["num_classes"], **config["model_args"])
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.common.errors import RunFailed, require
from beit.common.images.decoding import RGB
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.tensor_check import read_shapes, write_safetensors
from beit.common.vit.adapt import SHARED_TABLE
from beit.common.vit.config import LAYER_NORM_EPS, ViTConfig
from beit.common.vit.description import CONFIG_FILE, WEIGHTS_FILE
from beit.common.vit.position_bias import TABLE_KEY, num_table_rows
from beit.common.vit.transform import default_crop_pct
from beit.finetune.weights.export.exporter import Run, import_library
from beit.finetune.weights.export.preprocessing import decoding_note
from beit.finetune.weights.export.source import WORDS, ExportOptions, ExportSource, probe_mask
from beit.finetune.weights.import_exported import KEY, own_facts

LIBRARY = "timm"

_BEITS = {
    (16, 768, 12, 12): ("beit_base_patch16", (224, 384)),
    (16, 1024, 24, 16): ("beit_large_patch16", (224, 384, 512)),
}
_VITS = {
    (16, 192, 12, 3): ("vit_tiny_patch16", (224, 384)),
    (16, 384, 12, 6): ("vit_small_patch16", (224, 384)),
    (8, 384, 12, 6): ("vit_small_patch8", (224,)),
    (16, 768, 12, 12): ("vit_base_patch16", (224, 384)),
    (8, 768, 12, 12): ("vit_base_patch8", (224,)),
    (16, 1024, 24, 16): ("vit_large_patch16", (224, 384)),
}
"""What timm calls a patch size, width, depth and number of heads, and the sides that there are, in pixels."""
_USUAL = {"mlp_ratio": 4.0, "qkv_bias": True}
"""Of every name above."""
_BEIT_ONLY: dict[str, Any] = {
    "use_abs_pos_emb": False,
    "use_rel_pos_bias": True,
    "use_shared_rel_pos_bias": False,
    "use_fc_norm": None,
    "global_pool": "avg",
}
_VIT_ONLY: dict[str, Any] = {"global_pool": "token"}
_NO_PLACE = ("mask_token", "lm_head.", "pixel_head.")
"""Prefixes of what no model of timm has."""


def write(source: ExportSource, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the two files; what timm has no place for is left out, what it must have is added."""
    _require_place(source)
    left_out = _left_out(source)
    kept = {name: tensor for name, tensor in source.state.items() if name not in left_out}
    state = kept | _added(source)
    if _is_plain_vit(source):
        state = _vit_names(state)
    weights, description = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    write_safetensors(weights, options.cast(state), metadata={"format": "pt"})
    write_json(description, describe(source))
    return [weights, description]


def notes(source: ExportSource) -> list[str]:
    """Return what was left out and added."""
    found = []
    if left_out := _left_out(source):
        found.append(f"left out, since timm has no place for them: {len(left_out)} tensors, {', '.join(left_out)}")
    if _added(source):
        found.append("added: fc_norm of ones and zeros, which timm's pooled output passes, and its features do not")
    return found + decoding_note(source.config)


def reload(folder: Path, source: ExportSource) -> Run | None:
    """Build the model with timm from the two files, or, without timm, compare names and shapes with timm's."""
    config = read_json(folder / CONFIG_FILE)
    timm = import_library(LIBRARY)
    if timm is None:
        _check_shapes(read_shapes(folder / WEIGHTS_FILE), source)
        return None
    try:
        model = timm.create_model(
            config["architecture"],
            checkpoint_path=str(folder / WEIGHTS_FILE),
            num_classes=config["num_classes"],
            **config["model_args"],
        ).eval()
    except (RuntimeError, TypeError, AssertionError) as error:  # of names, shapes or arguments
        said = " ".join(str(error).split())[:300]
        raise RunFailed(f"timm {timm.__version__} does not take the export ({said}); nothing was written") from None
    return lambda images: _outputs(model, images, source)


def describe(source: ExportSource) -> dict[str, Any]:
    """Return what timm's `config.json` holds."""
    stored, shape = source.config, source.config.architecture
    names = stored.class_names or ()
    architecture, arguments = name_and_arguments(source)
    described: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": len(names),
        "num_features": shape.embed_dim,
        "global_pool": _pool(source),
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [shape.in_chans, shape.img_size, shape.img_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": default_crop_pct(shape.img_size) if stored.crop_pct is None else stored.crop_pct,
            "crop_mode": "center",
            "mean": list(stored.normalization.mean),
            "std": list(stored.normalization.std),
            "num_classes": len(names),
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    described[KEY] = own_facts(stored)
    if names:
        described["label_names"] = list(names)
    return described


def name_and_arguments(source: ExportSource) -> tuple[str, dict[str, Any]]:
    """Return what timm calls the model, and the arguments in which it differs from what that stands for."""
    shape, is_vit = source.config.architecture, _is_plain_vit(source)
    key = (shape.patch_size, shape.embed_dim, shape.depth, shape.num_heads)
    known, usual_key = (_VITS if is_vit else _BEITS), (16, 768, 12, 12)
    stem, sides = known.get(key, known[usual_key])
    side = shape.img_size if shape.img_size in sides else 224
    patch_size, embed_dim, depth, num_heads = key if key in known else usual_key
    init_values = None if is_vit else 1e-5 if "large" in stem else 0.1
    usual: dict[str, Any] = {
        "img_size": side,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        **_USUAL,
        "init_values": init_values,
        **(_VIT_ONLY if is_vit else _BEIT_ONLY),
    }
    wanted = {name: getattr(shape, name) for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    wanted["in_chans"], usual["in_chans"] = shape.in_chans, RGB
    wanted |= {name: getattr(shape, name) for name in _USUAL}
    # Whether there is a layer scale is all that matters. 0 where there is none: what is None, timm passes over.
    wanted["init_values"] = init_values if bool(init_values) == bool(shape.init_values) else shape.init_values
    wanted["global_pool"] = _pool(source)
    if not is_vit:
        has_fc_norm, usually = _has_fc_norm(source), _pool(source) == "avg"
        wanted |= {
            "use_abs_pos_emb": shape.use_abs_pos_emb,
            "use_rel_pos_bias": shape.pos_bias == "per_block",
            "use_shared_rel_pos_bias": shape.pos_bias == "shared",
            "use_fc_norm": None if has_fc_norm == usually else has_fc_norm,
        }
    return f"{stem}_{side}", {name: value for name, value in wanted.items() if value != usual[name]}


def expected_shapes(source: ExportSource) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors that timm's module has, for where timm cannot be imported."""
    shape, is_vit = source.config.architecture, _is_plain_vit(source)
    dim, inner = shape.embed_dim, shape.mlp_dim
    found: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, dim), "patch_embed.proj.bias": (dim,)}
    found["patch_embed.proj.weight"] = (dim, shape.in_chans, shape.patch_size, shape.patch_size)
    if shape.use_abs_pos_emb:
        found["pos_embed"] = (1, 1 + shape.num_patches, dim)
    if shape.pos_bias == "shared":
        found[SHARED_TABLE] = (num_table_rows(shape.grid_size), shape.num_heads)
    for i in range(shape.depth):
        found |= {f"blocks.{i}.{name}": size for name, size in _block_shapes(shape, dim, inner, is_vit=is_vit).items()}
    norm = "fc_norm" if _has_fc_norm(source) else "norm"
    found |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
    if classes := len(source.config.class_names or ()):
        found |= {"head.weight": (classes, dim), "head.bias": (classes,)}
    return found


def _block_shapes(shape: ViTConfig, dim: int, inner: int, *, is_vit: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        **{f"norm{number}.{part}": (dim,) for number in (1, 2) for part in ("weight", "bias")},
        "attn.qkv.weight": (3 * dim, dim),
        "attn.proj.weight": (dim, dim),
        "attn.proj.bias": (dim,),
        "mlp.fc1.weight": (inner, dim),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (dim, inner),
        "mlp.fc2.bias": (dim,),
    }
    if shape.qkv_bias:
        found |= {"attn.qkv.bias": (3 * dim,)} if is_vit else {"attn.q_bias": (dim,), "attn.v_bias": (dim,)}
    if shape.init_values:
        found |= {name: (dim,) for name in (("ls1.gamma", "ls2.gamma") if is_vit else ("gamma_1", "gamma_2"))}
    if shape.pos_bias == "per_block":
        found[f"attn.{TABLE_KEY}"] = (num_table_rows(shape.grid_size), shape.num_heads)
    return found


def _require_place(source: ExportSource) -> None:
    shape, what = source.config.architecture, WORDS[source.what]
    require(
        source.what != "segmenter",
        f"{source.path} is {what}, and timm has none; use --to onnx, --to hf or --to official",
    )
    require(
        source.config.pooling != "cls_mean",
        f"{source.path} is {what} on CLS and the mean of the patches side by side (cls_mean), and timm's have one of "
        "them; use --to onnx",
    )
    require(
        shape.layer_norm_eps == LAYER_NORM_EPS,
        f"{source.path} has layer_norm_eps {shape.layer_norm_eps}, and timm's models {LAYER_NORM_EPS}; use --to hf or "
        "--to onnx",
    )


def _is_plain_vit(source: ExportSource) -> bool:
    shape = source.config.architecture
    return shape.final_norm and shape.use_abs_pos_emb and shape.pos_bias == "none"


def _pool(source: ExportSource) -> str:
    return "token" if _is_plain_vit(source) or source.config.pooling == "cls" else "avg"


def _left_out(source: ExportSource) -> list[str]:
    return sorted(name for name in source.state if name.startswith(_NO_PLACE))


def _has_fc_norm(source: ExportSource) -> bool:
    """Tell whether the norm stands behind the pooling; a Beit of timm has one there or before it."""
    return not source.config.architecture.final_norm and "norm.weight" not in source.state


def _added(source: ExportSource) -> dict[str, Tensor]:
    """Return a norm that changes no feature, for an encoder that has none at all."""
    if not _has_fc_norm(source) or "fc_norm.weight" in source.state:
        return {}
    dim = source.config.architecture.embed_dim
    return {"fc_norm.weight": torch.ones(dim), "fc_norm.bias": torch.zeros(dim)}


def _vit_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of a VisionTransformer: one bias for queries, keys and values, ls1 and ls2."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("attn.q_bias"):
            prefix = name.removesuffix("q_bias")
            parts = [tensor, torch.zeros_like(tensor), state[f"{prefix}v_bias"]]
            renamed[f"{prefix}qkv.bias"] = torch.cat(parts)
        elif not name.endswith("attn.v_bias"):
            renamed[re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)] = tensor
    return renamed


def _check_shapes(found: Mapping[str, tuple[int, ...]], source: ExportSource) -> None:
    wanted = expected_shapes(source)
    wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if wrong:
        raise RunFailed(f"the export is not what timm's model has: {', '.join(wrong[:5])}; nothing was written")


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor, source: ExportSource) -> dict[str, Tensor]:
    """Run timm's module; features are taken behind the last block, since what norm follows is not the encoder's."""
    kept: list[Tensor] = []
    blocks, embed = model.get_submodule("blocks"), model.get_submodule("patch_embed")
    handles = [blocks.get_submodule(str(source.config.architecture.depth - 1)).register_forward_hook(
        lambda _module, _inputs, output: kept.append(output)
    )]  # fmt: skip
    if source.what == "masked":
        mask, token = probe_mask(source)[..., None], source.state["mask_token"].float()
        handles.append(embed.register_forward_hook(lambda _module, _inputs, patches: torch.where(mask, token, patches)))
    try:
        answer = model(images)
    finally:
        for handle in handles:
            handle.remove()
    (features,) = kept
    if source.config.architecture.final_norm:
        features = model.get_submodule("norm")(features)
    return {"features": features} | ({"logits": answer} if source.what == "classifier" else {})

"""Names of tensors in released vision transformers, and what beit calls them: the official BEiT names.

Known are the files of BEiT, DINO, MAE, DeiT and timm, which name alike, and those of Hugging Face for BEiT, ViT, MAE
and DeiT, with the names in files as well as those that modules of transformers 5 have. Nothing is guessed: a name that
is not known is refused. Reading files is `import_files.py`, what the tensors make up `import_model.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from beit.common.errors import InputError, require

Family = Literal["BEiT", "MAE", "ViT"]

_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Put before every name by DDP, torch.compile and some trainers."""

_HUGGING_FACE = [
    (r"^(beit|vit|deit)\.", ""),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"^(encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (r"\.(attention\.attention\.)?relative_position_bias\.(relative_position_(bias_table|index))$", r".attn.\2"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.lambda_([12])$", r".gamma_\1"),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
    (r"^classifier\.", "head."),
]  # fmt: skip
"""Applied in this order to every name."""

_KNOWN = re.compile(
    r"cls_token|mask_token|pos_embed|patch_embed\.proj\.(weight|bias)"
    r"|rel_pos_bias\.relative_position_bias_table"
    r"|blocks\.\d+\.(norm[12]\.(weight|bias)|attn\.(qkv\.(weight|bias)|(query|key|value)\.(weight|bias)|q_bias|v_bias"
    r"|proj\.(weight|bias)|relative_position_bias_table)|mlp\.fc[12]\.(weight|bias)|gamma_[12])"
    r"|(norm|fc_norm|lm_head|head)\.(weight|bias)"
)
_NOT_NEEDED = re.compile(
    r".*relative_position_index"  # follows from the grid
    r"|decoder.*"  # MAE's, for its own training
    r"|cls_pt_(layers|norm|lm_head)\..*"  # of BEiT v2, for its own training
    r"|pooler\.dense\.(weight|bias)"  # Hugging Face adds it to every ViT, often untrained
    r"|blocks\.\d+\.attn\.k_bias"  # zeros, in older timm
)
_SECOND_TOKEN = re.compile(r"(.*\.)?(dist_token|distillation_token|reg_token|register_tokens)")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedTensors:
    """The tensors of a file under the official names."""

    tensors: dict[str, Tensor]
    """Float32, contiguous."""
    family: Family
    """What kind of model they are from, as far as names tell: DINO, DeiT and supervised models are alike."""
    left_out: list[str]
    """Names, as in the file, of what an encoder has no use for."""
    is_beit_v2: bool
    """Whether there are layers that only the pre-training of BEiT v2 has. Its fine-tuned files are those of BEiT."""
    is_dino: bool
    """Whether the head of DINO's training is there, which iBOT has, too. Without it nothing tells."""

    @property
    def position_table(self) -> Tensor | None:
        """The relative position table (R, heads) that all blocks share, or that of the first."""
        shared = self.tensors.get("rel_pos_bias.relative_position_bias_table")
        return self.tensors.get("blocks.0.attn.relative_position_bias_table") if shared is None else shared


def official_names(tensors: Mapping[str, Tensor], origin: str) -> NamedTensors:
    """Rename all tensors; `origin` is named in messages.

    Separate queries, keys and values become one; a key bias, which shifts all logits of a query alike and so cancels in
    the softmax, is left out.
    """
    plain = _without_wrappers(tensors)
    is_mae = any(name.startswith("decoder") for name in plain)
    renamed: dict[str, Tensor] = {}
    left_out = []
    for given, tensor in plain.items():
        name = given
        for pattern, replacement in _HUGGING_FACE:
            name = re.sub(pattern, replacement, name)
        if _NOT_NEEDED.fullmatch(name) or (is_mae and name == "mask_token"):  # MAE's belongs to its decoder
            left_out.append(given)
            continue
        _require_known(name, given, origin)
        require(name not in renamed, f"{origin} has two tensors for {name}, the second is {given!r}; it is no encoder")
        renamed[name] = tensor.detach()
    has_own_biases = any(name.endswith(("q_bias", "bias_table")) or name.startswith("lm_head") for name in renamed)
    has_query_bias, has_key_bias = (
        any(name.endswith(f"attn.{part}.bias") for name in renamed) for part in ("query", "key")
    )
    family: Family = "MAE" if is_mae else "BEiT" if has_own_biases or (has_query_bias and not has_key_bias) else "ViT"
    plain = _split_bias(_join_projections(renamed, origin))
    plain = {
        name: tensor.float().contiguous() if tensor.is_floating_point() else tensor for name, tensor in plain.items()
    }
    return NamedTensors(
        tensors=plain,
        family=family,
        left_out=left_out,
        is_beit_v2=any(name.startswith("cls_pt_") for name in left_out),
        is_dino=any("head.last_layer." in name for name in tensors),
    )


def _without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip what wrappers put before every name; in DINO's training files the encoder is `backbone` beside a head."""
    plain = dict(tensors)
    while (wrapper := next((w for w in _WRAPPERS if plain and all(n.startswith(w) for n in plain)), None)) is not None:
        plain = {name.removeprefix(wrapper): tensor for name, tensor in plain.items()}
    inside = {name.removeprefix("backbone."): tensor for name, tensor in plain.items() if name.startswith("backbone.")}
    projection = all(name.startswith(("backbone.", "head.")) for name in plain)
    return inside if inside and projection else plain


def _require_known(name: str, given: str, origin: str) -> None:
    if _SECOND_TOKEN.fullmatch(name):
        raise InputError(
            f"{origin} has the tensor {given!r}: a second class token (distilled DeiT, registers), which beit has no "
            "place for; take the weights without it"
        )
    if not _KNOWN.fullmatch(name):
        raise InputError(
            f"{origin} has the unexpected tensor {given!r}; known are ViT encoders of BEiT, DINO, MAE, DeiT, timm and "
            "Hugging Face"
        )


def _join_projections(tensors: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Put separate query, key and value projections into one matrix, and their biases under the official names."""
    joined: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (match := re.fullmatch(r"(blocks\.\d+\.attn)\.(query|key|value)\.(weight|bias)", name)) is None:
            joined[name] = tensor
            continue
        prefix, part, kind = match.groups()
        if kind == "bias":
            if part != "key":
                joined[f"{prefix}.{part[0]}_bias"] = tensor
        elif part == "query":
            parts = [tensors.get(f"{prefix}.{other}.weight") for other in ("query", "key", "value")]
            require(
                all(other is not None and other.shape == tensor.shape for other in parts),
                f"{origin} lacks query, key and value of one shape for {prefix}; the file is damaged or incomplete",
            )
            joined[f"{prefix}.qkv.weight"] = torch.cat([other for other in parts if other is not None])
    return joined


def _split_bias(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split the common bias of queries, keys and values."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.qkv.bias") and tensor.ndim == 1 and len(tensor) % 3 == 0:
            prefix = name.removesuffix("qkv.bias")
            split[f"{prefix}q_bias"], _, split[f"{prefix}v_bias"] = tensor.chunk(3)
        else:
            split[name] = tensor
    return split

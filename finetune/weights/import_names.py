"""Names of tensors in released vision transformers, and what beit calls them: the official BEiT names.

Known are the files of BEiT, DINO, DINOv2, iBOT, MAE, MoCo v3, DeiT and timm, which name alike, and those of Hugging
Face for BEiT, data2vec, ViT, MAE, DeiT and DINOv2, with the names in files as well as those that modules of
transformers 5 have. Nothing is guessed: a name that is not known is refused, and what is known to be another model is
called by its name. Where in a file the encoder is says `import_prefixes.py`; the names of segmentation heads are
`import_segmenter_names.py`'s, what the tensors make up `import_model.py`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from beit.common.errors import InputError, require
from beit.finetune.weights.import_prefixes import Trunk, WeightsKind, find_trunk
from beit.finetune.weights.import_segmenter_names import is_segmentation_name, segmentation_name

Family = Literal["BEiT", "MAE", "ViT"]

_RENAMES = [
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
    (r"\.(lambda_|layer_scale|ls)([12])(\.lambda1|\.gamma)?$", r".gamma_\2"),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 keeps blocks in chunks while it trains
    (r"^masked_embed$", "mask_token"),  # of iBOT
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
    r"|decoder.*"  # MAE's and SimMIM's, for their own training
    r"|cls_pt_(layers|norm|lm_head)\..*"  # of BEiT v2, for its own training
    r"|(projection_head|projector|predictor|prototypes|dino_head|ibot_head)\..*|head\.(mlp|last_layer\d?)\..*"
    r"|head\.\d+\..*"  # MoCo v3's projector and other heads of several layers
    r"|pooler\.dense\.(weight|bias)"  # Hugging Face adds it to every ViT, often untrained
    r"|blocks\.\d+\.attn\.k_bias"  # zeros, in older timm
)
_OTHERS = [
    (r"(.*\.)?(dist_token|distillation_token)|head_dist\..*", "a second class token (distilled DeiT)"),
    (r"(.*\.)?(reg_token|register_tokens|storage_tokens)", "registers (DINOv2 with registers, DINOv3)"),
    (r".*\.mlp\.(w1|w2|w3|w12|weights_in|weights_out|fc1_[gx]|gate_proj)\..*", "a gated MLP (SwiGLU, as DINOv2 giant)"),
    (r".*\.attn\.(q_norm|k_norm)\..*|.*\.(query|key)_norm\..*", "queries and keys with norms (qk-norm)"),
    (r"(.*\.)?(rope|rope_embed|freqs_(cos|sin)|freqs|inv_freq)(\..*)?", "rotary positions (RoPE: EVA-02, DINOv3)"),
    (r".*\.(attn\.(inner_attn_ln|norm)|mlp\.(ffn_ln|norm))\..*", "norms inside its blocks (EVA-02, sub-LN)"),
    (r"(norm_pre|ln_pre|pre_layrnorm)\..*", "a norm before its blocks (CLIP)"),
    (r"attn_pool\..*", "a pooling by attention (SigLIP, CaiT)"),
    (r"patch_embed\.(proj\.\d+|conv\d*|backbone|norm)\..*", "patches by several layers (convolutional stem)"),
    (r"(cls_pos_embed|pos_embed_(x|y|cls))|.*\.(rel_pos_[hw])", "positions of another kind (MViT, ViTDet)"),
]  # fmt: skip
"""Tensors, under names of timm, of models that compute something else, and what they are."""
_MASK_DIMENSIONS = 3


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
    """Whether it tells that it is of DINO, iBOT or DINOv2: by the head of their training, or a mask token beside the
    layer scale of DINOv2."""
    is_moco: bool
    """Whether it stands beside a momentum encoder of that name, as in MoCo v3."""
    trunk: Trunk
    """Where in the file it was."""
    made_up: dict[str, str]
    """Of tensors that the file lacks in part: what was put there, by name."""

    @property
    def position_table(self) -> Tensor | None:
        """The relative position table (R, heads) that all blocks share, or that of the first."""
        shared = self.tensors.get("rel_pos_bias.relative_position_bias_table")
        return self.tensors.get("blocks.0.attn.relative_position_bias_table") if shared is None else shared


def official_names(
    tensors: Mapping[str, Tensor], origin: str, *, weights: WeightsKind | None = None, prefix: str | None = None
) -> NamedTensors:
    """Rename all tensors; `origin` is named in messages, the rest is `find_trunk`'s.

    Separate queries, keys and values become one; a key bias, which shifts all logits of a query alike and so cancels in
    the softmax, is left out.
    """
    trunk = find_trunk(tensors, weights, prefix, origin)
    is_mae = any(name.startswith(("decoder_embed", "decoder.decoder_embed")) for name in trunk.names)
    renamed: dict[str, Tensor] = {}
    left_out = list(trunk.left_out)
    for given, original in trunk.names.items():
        name = given
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        name = segmentation_name(name)
        if _NOT_NEEDED.fullmatch(name) or (is_mae and name == "mask_token"):  # MAE's belongs to its decoder
            left_out.append(original)
            continue
        _require_known(name, original, origin)
        require(
            name not in renamed, f"{origin} has two tensors for {name}, the second is {original!r}; it is no encoder"
        )
        renamed[name] = tensors[original].detach()
    has_own_biases = any(name.endswith(("q_bias", "bias_table")) or name.startswith("lm_head") for name in renamed)
    has_query_bias, has_key_bias = (
        any(name.endswith(f"attn.{part}.bias") for name in renamed) for part in ("query", "key")
    )
    family: Family = "MAE" if is_mae else "BEiT" if has_own_biases or (has_query_bias and not has_key_bias) else "ViT"
    is_dino = any("last_layer" in name for name in left_out) or _is_dino_v2(renamed)
    plain, made_up = _in_our_shapes(_split_bias(_join_projections(renamed, origin)))
    plain = {
        name: tensor.float().contiguous() if tensor.is_floating_point() else tensor for name, tensor in plain.items()
    }
    return NamedTensors(
        tensors=plain,
        family=family,
        left_out=left_out,
        is_beit_v2=any("cls_pt_" in name for name in left_out),
        is_dino=is_dino,
        is_moco=any("base_encoder." in name for name in tensors),
        trunk=trunk,
        made_up=made_up,
    )


def _is_dino_v2(renamed: Mapping[str, Tensor]) -> bool:
    """Tell DINOv2, whose mask token lacks a dimension beside a layer scale; iBOT has no scale."""
    token = renamed.get("mask_token")
    return token is not None and token.ndim < _MASK_DIMENSIONS and "blocks.0.gamma_1" in renamed


def _in_our_shapes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give two tensors that some projects shape otherwise the shape that everybody else has.

    A mask token (1, D) becomes (1, 1, D). Positions of patches alone, in DeiT III, get zeros for the class token, to
    which nothing is added there.
    """
    made_up: dict[str, str] = {}
    token, positions = tensors.get("mask_token"), tensors.get("pos_embed")
    if token is not None and token.ndim == _MASK_DIMENSIONS - 1:
        tensors = tensors | {"mask_token": token[None]}
    if positions is not None and positions.ndim == _MASK_DIMENSIONS:
        patches = positions.shape[1]
        if patches > 0 and math.isqrt(patches) ** 2 == patches and math.isqrt(patches - 1) ** 2 != patches - 1:
            zeros = torch.zeros_like(positions[:, :1])
            tensors = tensors | {"pos_embed": torch.cat([zeros, positions], dim=1)}
            made_up["pos_embed"] = "zeros as the position of CLS, which has none there (DeiT III)"
    return tensors, made_up


def _require_known(name: str, given: str, origin: str) -> None:
    for pattern, what in _OTHERS:
        if re.fullmatch(pattern, name):
            raise InputError(
                f"{origin} has the tensor {given!r}: {what}, which a beit encoder has no place for; give a model "
                "without it"
            )
    if not _KNOWN.fullmatch(name) and not is_segmentation_name(name):
        raise InputError(
            f"{origin} has the unexpected tensor {given!r}; known are ViT encoders of BEiT, DINO, DINOv2, iBOT, MAE, "
            "MoCo v3, DeiT, timm and Hugging Face"
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

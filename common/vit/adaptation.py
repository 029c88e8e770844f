"""How much of a model is trained that starts from an encoder: all of it, its last blocks, or low-rank updates of it.

Here: which weights are trained, and plain weights from a state with updates. Not here: the setting itself
(`config.py`), the layer with an update (`lora.py`), how a shape is fitted to another (`adapt.py`).

A model is the encoder, its embeddings and blocks, and what comes after it: last norms and heads. The latter is always
trained, and so is what the encoder's file did not hold. The mask token counts as new under `lora`, where it costs
nothing, and as an embedding under `last`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import cast

from torch import Tensor, nn

from beit.common.errors import require
from beit.common.vit.config import Adaptation, ViTConfig
from beit.common.vit.lora import LORA_A, LORA_B, LoraLinear, merged_weight
from beit.common.vit.param_groups import layer_id
from beit.common.vit.position_bias import TABLE_KEY
from beit.common.vit.vit import Block, VisionTransformer

__all__ = ["Adaptation", "adapt", "check_adaptation", "fresh_names", "merge_state", "parameters_in_words"]

_OF_ENCODER = ("cls_token", "pos_embed", "patch_embed", "rel_pos_bias", "blocks")
"""First part of the names that `lora` keeps; the mask token is none of them."""


def check_adaptation(adaptation: Adaptation, shape: ViTConfig) -> None:
    """Refuse a setting that a model of this shape cannot follow."""
    blocks, rank, most = adaptation.last_blocks, adaptation.rank, min(shape.embed_dim, shape.mlp_dim)
    require(
        blocks is None or blocks <= shape.depth,
        f'adapt ("last:{blocks}") must name at most {shape.depth} blocks, all that the encoder has; "all" trains its '
        "embeddings, too",
    )
    require(
        rank is None or rank <= most,
        f'adapt ("lora:{rank}") must have a rank of at most {most}, the smaller side of the encoder\'s matrices; "all" '
        "trains them whole",
    )


def adapt(model: VisionTransformer, adaptation: Adaptation, *, fresh: Collection[str] = ()) -> None:
    """Say of every parameter of a model whether it is trained, and give it the updates it is to learn.

    To be called when the encoder's weights are in it, and before anything wraps it. What it computes stays the same, to
    the bit. Blocks that are not trained at all, because no head looks at them, stay so.

    Args:
        model: With whatever head.
        adaptation: What is to be trained.
        fresh: Names of parameters that the encoder never had, from `fresh_names`.
    """
    check_adaptation(adaptation, model.config)
    frozen = adaptation.frozen_blocks(model.config.depth)
    if frozen is not None:
        _freeze_below(model, frozen, fresh)
    if adaptation.rank is not None:
        _train_updates(model, adaptation.rank, fresh)


def fresh_names(model: VisionTransformer, source: ViTConfig) -> list[str]:
    """List what a model has of an encoder, mask token included, that an encoder of the shape `source` never had.

    By shapes alone, so that it is the same where a run goes on without the encoder.
    """
    names = [name for name, _ in model.named_parameters()]
    fresh = [name for name in names if name == "mask_token" and not source.use_mask_token]
    return fresh + [name for name in names if name.endswith(TABLE_KEY) and source.pos_bias == "none"]


def merge_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under the official names alone, whose weights do what `state` did with its updates."""
    ends = tuple(f".{name}" for name in (LORA_A, LORA_B))
    merged = {name: tensor for name, tensor in state.items() if not name.endswith(ends)}
    for name in state:
        layer, _, part = name.rpartition(".")
        if part == LORA_A:
            weight = f"{layer}.weight"
            merged[weight] = merged_weight(state[weight], state[name], state[f"{layer}.{LORA_B}"])
    return merged


def parameters_in_words(model: nn.Module) -> str:
    """Say how many parameters a model has and, where that is another number, how many are trained."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total, trained = sum(number for number, _ in counts), sum(number for number, is_trained in counts if is_trained)
    if trained == total:
        return f"{total / 1e6:.1f} M parameters"
    return f"{_in_millions(trained)} of {total / 1e6:.1f} M parameters trained"


def _freeze_below(model: VisionTransformer, num_blocks: int, fresh: Collection[str]) -> None:
    """Leave the embeddings, the lowest blocks, and a position table that all blocks share, as they are.

    What is fresh among them is trained all the same, but not in a block that stays: there it changes nothing yet.
    """
    for name, parameter in model.named_parameters():
        is_below = layer_id(name, model.config.depth) <= num_blocks or name.startswith("rel_pos_bias.")
        if is_below and (name not in fresh or name.startswith("blocks.")):
            parameter.requires_grad_(False)


def _in_millions(number: int) -> str:
    """Write a number of parameters such that few do not become none."""
    return f"{number / 1e6:.1f}" if number >= 1e6 else f"{number / 1e6:.2g}"


def _train_updates(model: VisionTransformer, rank: int, fresh: Collection[str]) -> None:
    for block in cast(Iterable[Block], model.blocks):
        if any(parameter.requires_grad for parameter in block.parameters()):
            for owner, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
                setattr(owner, name, LoraLinear(getattr(owner, name), rank))
    for name, parameter in model.named_parameters():
        first, last = name.partition(".")[0], name.rpartition(".")[2]
        if first in _OF_ENCODER and last not in (LORA_A, LORA_B) and name not in fresh:
            parameter.requires_grad_(False)

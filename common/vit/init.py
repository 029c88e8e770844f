"""Initial values of the vision transformer: the two published rules.

Here: what every tensor starts from. Not here: which tensors exist (`common/vit/vit.py`) and loading weights over them
(`common/encoder.py`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from beit.common.vit.config import InitRule, ViTConfig
from beit.common.vit.position_bias import TABLE_KEY, near_first

INIT_STD = 0.02
_STD_AFTER_CUT = 0.54 * INIT_STD
"""Of the pre-training rule."""
_GAIN, _TOKEN_STD = 0.7, 0.5
"""Of `scale_to_width`: what is left of the deviation of a layer's input, and the deviation of CLS and mask token, about
that of an embedded patch. One value each was tried (docs/speedrun.md)."""
_OF_STREAM = ("patch_embed.", "blocks.", "cls_pt_layers.")
"""What computes on the residual stream: the embedding, blocks, and those that aggregate."""
_NO_CUT = 6.0
"""Cut of the fine-tuning rule in standard deviations; the released code cuts at 100 of them, which is no cut, except
that its sampler then turns one draw in 2^24 into a weight of -2.0 (100 standard deviations)."""


def trunc_normal(tensor: Tensor, rule: InitRule) -> None:
    """Fill a weight in place with a truncated normal, mean 0, standard deviation 0.02 before the cut.

    "pretrain" cuts at one standard deviation (0.0108 remain), "finetune" practically nowhere.

    Source: the released BEiT code; the cut of pre-training is deliberate (microsoft/unilm issue 914).
    """
    with torch.no_grad():
        if rule == "finetune":
            tensor.normal_(std=INIT_STD).clamp_(-_NO_CUT * INIT_STD, _NO_CUT * INIT_STD)
            return
        # Inverse of the cumulative distribution between -1 and 1; the sampler of torch.nn.init needs ten times as long.
        reach = math.erf(1 / math.sqrt(2))
        tensor.uniform_(-reach, reach).erfinv_().mul_(math.sqrt(2) * INIT_STD).clamp_(-INIT_STD, INIT_STD)


def init_vit(model: nn.Module, config: ViTConfig) -> None:
    """Give every parameter a vision transformer has at this point its initial value, in place; heads add their own.

    Source: the released BEiT code. Pre-training draws the patch convolution like every Linear; fine-tuning leaves it at
        the default of the convolution. Position tables, q and v biases start at zero, so at first all masked patches of
        an image have equal logits.
    """
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) or (isinstance(module, nn.Conv2d) and config.init == "finetune"):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            trunc_normal(module.weight, config.init)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf in ("cls_token", "mask_token", "pos_embed"):
            trunc_normal(parameter, config.init)
        elif leaf in ("q_bias", "v_bias", "relative_position_bias_table"):
            nn.init.zeros_(parameter)
        elif leaf in ("gamma_1", "gamma_2"):
            nn.init.constant_(parameter, config.init_values)
        elif name.startswith("blocks.") and name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            # Both branches of block l add to a stream that l blocks share: what they write is divided by sqrt(2 l).
            with torch.no_grad():
                parameter.div_(math.sqrt(2 * (int(name.split(".")[1]) + 1)))


def scale_to_width(model: nn.Module, grid_size: tuple[int, int]) -> None:
    """Make initial values of the pre-training rule, in place, those of a model that learns from its first steps on.

    Weights of 0.01, made for 768 channels, pass on a tenth of their input where there are 128: here embedding and
    blocks get the deviation that their own width asks for. And as long as all offsets weigh alike, masked patches
    cannot tell where they are, so that position tables begin near (`near_first`). Heads stay as they are.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf == TABLE_KEY:
                parameter.copy_(near_first(grid_size, parameter.shape[1]))
            elif leaf in ("cls_token", "mask_token"):
                parameter.mul_(_TOKEN_STD / _STD_AFTER_CUT)
            elif leaf == "weight" and parameter.ndim > 1 and name.startswith(_OF_STREAM):
                parameter.mul_(_GAIN * parameter[0].numel() ** -0.5 / _STD_AFTER_CUT)


def init_head(head: nn.Linear, scale: float) -> None:
    """Initialise a classification head in place: small, so that fine-tuning starts near uniform predictions.

    `scale` multiplies the weight after the fine-tuning rule; 0.001 in the released code.
    """
    trunc_normal(head.weight, "finetune")
    with torch.no_grad():
        head.weight.mul_(scale)
        nn.init.zeros_(head.bias)

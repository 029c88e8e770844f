"""DINO, a rival of BEiT: a student agrees with the moving average of itself on crops of one image, without labels.

Written from the paper. Here: the projection head, the loss with its centre, the teacher, several crops per image. Not
here: the training (`rival_training.py`).

Legend: B = batch, G = global crops, V = all crops, global ones first, D = width, K = outputs of the head.

Source: Caron et al., "Emerging properties in self-supervised vision transformers", 2021. Differs: what the paper counts
in epochs (the warm-up of the teacher's temperature, how long the last layer is frozen) are shares of the run, whose
length is a budget; the encoder is BEiT's; colours are jittered as for BEiT, and made grey now and then, without blur
and solarisation; sizes are those of small images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

import torch
from torch import Tensor, nn

from beit.benchmarks.rival_training import Kind, Learning
from beit.common.config import above, at_least, checked, within
from beit.common.errors import require
from beit.common.views import AugmentConfig
from beit.common.vit.config import ViTConfig
from beit.common.vit.init import trunc_normal
from beit.common.vit.vit import VisionTransformer


@checked("learning")
class DinoLearning(Learning):
    """The same, with DINO's values."""

    lr: Annotated[float, above(0)] = 2e-4
    batch_size: Annotated[int, at_least(1)] = 32
    weight_decay: Annotated[tuple[float, float], at_least(0)] = (0.04, 0.4)


@checked()
class DinoConfig:
    """Settings of DINO. Where the paper's are of ImageNet and hundreds of passes, those that trials chose here."""

    learning: DinoLearning = field(default_factory=DinoLearning)
    """Optimizer and schedule."""
    layer_scale: Annotated[float, above(0)] = 1.0
    """What every branch of the encoder is multiplied with at first; BEiT's is 0.1, the paper has none."""
    outputs: Annotated[int, at_least(2)] = 256
    """K; the paper's 65 536 are for ImageNet."""
    hidden_dim: Annotated[int, at_least(1)] = 512
    """Width of the head."""
    bottleneck_dim: Annotated[int, at_least(1)] = 64
    """Its output before the last layer."""
    student_temperature: Annotated[float, above(0)] = 0.1
    """Divides the student's outputs."""
    teacher_temperature: Annotated[tuple[float, float], above(0)] = (0.04, 0.04)
    """Divides the teacher's, at the start and after the warm-up."""
    temperature_warmup: Annotated[float, within("[0, 1]")] = 0.3
    """Share of the run over which it rises."""
    momentum: Annotated[float, within("[0, 1]")] = 0.99
    """How much of itself the teacher keeps in a step, at the start; 1 at the end, by half a cosine. The paper's 0.996
    is for a hundred times as many steps."""
    center_momentum: Annotated[float, within("[0, 1)")] = 0.9
    """How much of itself the centre keeps in a step."""
    frozen: Annotated[float, within("[0, 1)")] = 0.01
    """Share of the run in which the last layer stays as it is; the paper's is one epoch of a hundred."""
    global_crops: Annotated[int, at_least(2)] = 2
    """Of each image, at the size of the encoder; the teacher sees these only."""
    local_crops: Annotated[int, at_least(0)] = 6
    """Of each image, small ones."""
    local_size: Annotated[int, at_least(1)] = 16
    """Side of these in pixels."""
    global_scale: Annotated[tuple[float, float], within("(0, 1]")] = (0.4, 1.0)
    """Smallest and largest area of a global crop."""
    local_scale: Annotated[tuple[float, float], within("(0, 1]")] = (0.08, 0.4)
    """Of a local one; the paper's least is 0.05, 7 px of an image of 32."""
    grey: Annotated[float, within("[0, 1]")] = 0.2
    """How often a crop loses its colours."""


class Dino(nn.Module):
    """Student, teacher and loss.

    Args:
        encoder: Where student and teacher begin; its features pass a last norm of its own.
        config: Settings.
    """

    def __init__(self, encoder: VisionTransformer, config: DinoConfig) -> None:
        super().__init__()
        architecture = encoder.config
        side, patch = config.local_size, architecture.patch_size
        require(side % patch == 0, f"local_size ({side}) must be a multiple of the patch size ({patch})")
        self.config = config
        self.learning = config.learning
        self._local_grid = (side // patch, side // patch)
        wide, narrow = (AugmentConfig(scale=scale) for scale in (config.global_scale, config.local_scale))
        self.kinds = (
            Kind(views=config.global_crops, img_size=architecture.img_size, augment=wide, grey=config.grey),
            Kind(views=config.local_crops, img_size=side, augment=narrow, grey=config.grey),
        )
        self.student = nn.ModuleDict({"encoder": encoder, "head": Head(architecture, config)})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("center", torch.zeros(config.outputs))

    center: Tensor

    def result(self) -> VisionTransformer:
        """Return the encoder that is worth keeping: the teacher's, as in the paper."""
        encoder: VisionTransformer = self.teacher["encoder"]
        return encoder

    def loss(self, batch: Sequence[Tensor], *, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of a batch, the entropy of an answer of the teacher and of all, in bits; note the new centre.

        Collapse shows in them: all answers alike have none together, and where each is uniform, each has all there is.

        The batch is global crops (G, B, 3, img_size, img_size), and local ones (V - G, B, 3, local_size, local_size) if
        there are any; float32, normalised.
        """
        wide, *narrow = batch
        with torch.no_grad():
            taught = self._answers(self.teacher, wide)  # (G, B, K)
        answers = [self._answers(self.student, wide)]
        answers += [self._answers(self.student, crops, self._local_grid) for crops in narrow]
        temperature = teacher_temperature(self.config, progress)
        targets = centred_targets(taught, self.center, temperature)
        loss = dino_loss(targets, torch.cat(answers), self.config.student_temperature)
        self.center = updated_center(self.center, taught, self.config.center_momentum)
        each, together = _entropy_bits(targets).mean(), _entropy_bits(targets.mean((0, 1)))
        return {"loss": loss, "answer_bits": each, "all_bits": together}

    def _answers(self, network: nn.ModuleDict, crops: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Return what a network answers to crops (V, B, 3, h, w): (V, B, K), in one pass."""
        encoder, images = network["encoder"], crops.flatten(0, 1)
        if grid is None:  # nobody looks at the patches, so the last block does CLS alone
            only_cls = images.new_zeros(len(images), 1, dtype=torch.long)
            cls = encoder.forward_features(images, positions=only_cls)[:, 0]
        else:
            cls = encoder.forward_intermediates(images, [-1], grid_size=grid)[0][:, 0]
        answers: Tensor = network["head"](cls)
        return answers.unflatten(0, crops.shape[:2])

    def before_step(self, *, progress: float) -> None:
        """Leave the last layer out of the first steps."""
        if progress < self.config.frozen:
            self.student["head"].prototypes.grad = None

    @torch.no_grad()
    def after_step(self, *, progress: float) -> None:
        """Move the teacher a little towards the student."""
        kept = teacher_momentum(self.config.momentum, progress)
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        teachers, students = map(list, zip(*pairs, strict=True))
        torch._foreach_mul_(teachers, kept)
        torch._foreach_add_(teachers, students, alpha=1 - kept)


class Head(nn.Module):
    """Three linear layers, a vector of length one, and its similarity to K directions."""

    def __init__(self, architecture: ViTConfig, config: DinoConfig) -> None:
        super().__init__()
        width, narrow = config.hidden_dim, config.bottleneck_dim
        self.layers = nn.Sequential(
            *(nn.Linear(architecture.embed_dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU()),
            nn.Linear(width, narrow),
        )
        # A linear layer normalised by weight, whose lengths stay 1, is one of which only the directions count.
        self.prototypes = nn.Parameter(nn.Linear(narrow, config.outputs, bias=False).weight.detach())
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                trunc_normal(layer.weight, "finetune")
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D) to (B, K), in [-1, 1]."""
        hidden = nn.functional.normalize(self.layers(features), dim=-1)
        return nn.functional.linear(hidden, nn.functional.normalize(self.prototypes, dim=-1))


def centred_targets(taught: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Turn the teacher's answers (G, B, K), less the centre (K,), into distributions: centred, and sharpened."""
    return ((taught - center) / temperature).softmax(-1)


def dino_loss(targets: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy between the targets of one crop and the answers to another, over all such pairs.

    Args:
        targets: (G, B, K) distributions; crop g is crop g of the answers, too, and this pair is left out.
        answers: (V, B, K) of the student, global crops first.
        temperature: Divides the answers.
    """
    logs = (answers / temperature).log_softmax(-1)
    pairs = -torch.einsum("gbk,vbk->gv", targets, logs) / targets.shape[1]
    own = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(own, 0.0).sum() / (pairs.numel() - len(pairs))


def updated_center(center: Tensor, taught: Tensor, momentum: float) -> Tensor:
    """Move the centre (K,) towards the mean of the teacher's answers (G, B, K)."""
    return center * momentum + taught.mean((0, 1)) * (1 - momentum)


def teacher_temperature(config: DinoConfig, progress: float) -> float:
    """Return the temperature at a share of the run in [0, 1): it rises in a line."""
    first, last = config.teacher_temperature
    part = 1.0 if config.temperature_warmup == 0 else min(1.0, progress / config.temperature_warmup)
    return first + (last - first) * part


def teacher_momentum(first: float, progress: float) -> float:
    """Return how much of itself the teacher keeps at a share of the run in [0, 1): from `first` to 1 by a cosine."""
    return 1 - (1 - first) * (1 + math.cos(math.pi * progress)) / 2


def _entropy_bits(distribution: Tensor) -> Tensor:
    """Return the entropy of distributions (..., K)."""
    return -(distribution * distribution.clamp_min(1e-12).log2()).sum(-1)

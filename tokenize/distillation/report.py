"""What a distilled tokenizer is and how good: numbers and pictures of its evaluations, and the README beside it.

The thorough measurement of a finished tokenizer is `beit tokenizer report` (`tokenize/fitness/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from beit.common.pages.pictures import picture_table, sheet
from beit.tokenize.distillation.config import DistillationConfig
from beit.tokenize.distillation.data import CHANGED_IMAGES, IMAGES, TEACHER_IMAGES
from beit.tokenize.distillation.model import DistillationModel, teacher_cosine
from beit.tokenize.fitness.tokens import collision_probability, perplexity
from beit.tokenize.teacher import Teacher
from beit.tokenize.tokenizer_training.card import Card

_GROUPS_PER_ROW, _MICRO_BATCH_SIZE = 2, 32


def batches_of(views: Mapping[str, Tensor], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Yield views that are measured, uint8 (B, 3, side, side) by name, in small batches on the device."""
    for start in range(0, len(views[IMAGES]), _MICRO_BATCH_SIZE):
        yield {name: images[start : start + _MICRO_BATCH_SIZE].to(device) for name, images in views.items()}


@torch.no_grad()
def distillation_metrics(
    model: DistillationModel, teacher: Teacher, views: Mapping[str, Tensor], device: torch.device
) -> dict[str, float]:
    """Measure words on views of held-out images, as `ViewTransform.render` makes them, uint8 (B, 3, S, S) each.

    Returns:
        teacher_cosine (mean cosine of the teacher's features and what the words tell of them), words_used (different
        words that occur), perplexity (words that, used equally, would be as diverse), agreement (share of squares that
        keep their word in mirror image and in other colours) and agreement_by_chance (that of two squares anywhere).
    """
    num_words = model.vqkd.vocab_size
    cosines, equal, counts = [], 0, torch.zeros(num_words, dtype=torch.int64)
    for part in batches_of(views, device):
        found = model(part[IMAGES])
        targets = model.standardised(teacher.features(part.get(TEACHER_IMAGES, part[IMAGES])))
        cosines.append(float(teacher_cosine(found.features, targets)) * len(targets))
        words = found.quantized.words
        changed = model.vqkd.quantizer.words(model.vqkd.codes(part[CHANGED_IMAGES]))
        equal += int((changed.flip(2) == words).sum())
        counts += torch.bincount(words.flatten(), minlength=num_words).cpu()
    return {
        "teacher_cosine": sum(cosines) / len(views[IMAGES]),
        "words_used": float((counts > 0).sum()),
        "perplexity": perplexity(counts.numpy()),
        "agreement": equal / int(counts.sum()),
        "agreement_by_chance": collision_probability(counts.numpy()),
        "images": float(len(views[IMAGES])),
    }


@torch.no_grad()
def words_sheet(model: DistillationModel, views: Mapping[str, Tensor], device: torch.device) -> Image:
    """Draw views, uint8 (B, 3, S, S), beside their words, and the same for the views in mirror image and colours.

    Words are coloured by their place among all: near words have near colours.
    """
    colours = word_colours(model.vqkd.quantizer.codebook)
    drawn = []
    for name in (IMAGES, CHANGED_IMAGES):
        images = views[name].to(device)
        words = model.vqkd.quantizer.words(model.vqkd.codes(images)).cpu()
        drawn += [images.permute(0, 2, 3, 1).cpu().numpy(), colours[words.numpy()]]
    groups = [[column[number] for column in drawn] for number in range(len(views[IMAGES]))]
    rows = [sum(groups[start : start + _GROUPS_PER_ROW], []) for start in range(0, len(groups), _GROUPS_PER_ROW)]
    titles = ("view", "its words", "mirrored, recoloured", "its words") * (len(rows[0]) // len(drawn))
    legend = "A square's colour stands for its word; words that are near each other have similar colours."
    return sheet([picture_table(rows, titles=titles)], legend=legend)


def word_colours(codebook: Tensor) -> NDArray[np.uint8]:
    """Return a colour for each word of a codebook (V, C), uint8 (V, 3), by its place along three axes."""
    centred = (codebook - codebook.mean(dim=0)).double().cpu()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    signs = torch.where(directions.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)  # a direction has no sign of its own
    axes = centred @ (signs * directions)[:3].t()
    axes = torch.cat([axes, axes.new_zeros(len(axes), 3 - axes.shape[1])], dim=1)
    ranks = axes.argsort(dim=0).argsort(dim=0).double() / max(1, len(axes) - 1)  # every shade equally often
    colours: NDArray[np.uint8] = (40 + 200 * ranks).round().to(torch.uint8).numpy()
    return colours


def distillation_card(config: DistillationConfig, training: Mapping[str, Any]) -> Card:
    """Return the card; `training` is what the tokenizer's config.json says."""
    model, metrics, teacher = config.model, training["metrics"], training["teacher"]
    block = "" if teacher["block"] is None else f" --teacher-block {teacher['block']}"
    return Card(
        what=f"Vector-quantised knowledge distillation: each {model.patch_size} x {model.patch_size} px square of an "
        f"image of {model.img_size} x {model.img_size} px becomes one of {model.vocab_size} visual words, chosen for "
        "what they tell of a teacher's features.",
        notes=["Words stand for what is in a square, not for its pixels: pictures of them are mean patches."],
        gives=f"  # {model.grid_size} x {model.grid_size} each",
        facts=[
            f"Network: vision transformer of {model.depth} block{'s' * (model.depth > 1)}, {model.embed_dim} wide, "
            f"{model.num_heads} heads; code vectors of {model.code_dim}.",
            f"Teacher: `{teacher['name']}`, {teacher['dim']} features per square at {teacher['img_size']} px, "
            f"fingerprint `{teacher['fingerprint']}`.",
        ],
        options=f" --teacher {teacher['name']}{block}",
        made=f", step {training['step']} of {training['total_steps']}",
        data="",
        licence_of="these weights, of the teacher, and of the images they were trained on",
        measured_on=f"{metrics.get('eval_images', 0):.0f} of the held-out images, one view of each; `words.png` shows "
        "some, as the latest evaluation saw them",
        measured={
            "cosine of the teacher's features and what words tell of them": f"{metrics['eval_teacher_cosine']:.3f}",
            "different words used": f"{metrics['eval_words_used']:.0f} of {model.vocab_size}",
            "perplexity of the words": f"{metrics['eval_perplexity']:.0f}",
            "squares that keep their word in mirror image and other colours": f"{metrics['eval_agreement']:.1%} (by "
            f"chance {metrics['eval_agreement_by_chance']:.1%})",
        }
        if metrics
        else {},
    )

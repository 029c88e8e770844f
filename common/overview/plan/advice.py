"""What is advised for so many images and labels, each with the measurement it rests on and where that is written down.

Thresholds lie between what was measured on both sides of them, or are those of the recipes' own headers; where neither
says anything, the advice says so, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beit.common.forecast.words import in_digits
from beit.common.overview.plan.amounts import large
from beit.common.overview.plan.choice import MANY_LABELS, MANY_PHOTOS, MOST_LABELS, SOME_LABELS, SOME_PHOTOS, Case
from beit.common.pages.numbers import count

_FEW_LABELS = 150
_SMALL_BATCH = 64
_LONG_RUN_STEPS, _SHORT_RUN_STEPS = 100_000, 1000
"""From the first on a run has steps enough, whatever its batch; with fewer than the second any network wants more."""
_MUCH_REUSE, _ENOUGH_VIEWS = 2.0, 4
_SLOW_TOKENS = 0.3
"""Of the time of tokenising and training together, what is much."""

Topic = Literal["start", "recipe", "length", "batch", "views", "words", "labels", "adaptation", "precision"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What is planned, as far as advice depends on it."""

    steps: int
    """Of the pre-training."""
    batch: int
    """Images per step."""
    epochs: float
    """Passes over the images."""
    views: int
    """Of each image, K; 0 where tokens are computed online."""
    width: int
    """Channels of the network."""
    is_continued: bool
    """Whether it begins with an encoder."""
    tokenizer: str
    """Whose words are predicted; empty where a store is there already."""
    tokenize_share: float | None
    """Of the time of tokenising and pre-training together, what tokenising takes; None where there is a store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """One thing to do, and why."""

    topic: Topic
    """What it is about."""
    what: str
    """In the imperative."""
    why: str
    """What was measured or published; "not measured here" where nothing was."""
    where: str
    """Page of docs/ with the measurement."""


def advise(case: Case, training: Training) -> tuple[Advice, ...]:
    """Return everything that is advised, what weighs most first."""
    found = (_start(case, training), _batch(training), _views(training), _words(training))
    return (*(advice for advice in found if advice is not None), *_labels(case, training))


def _start(case: Case, training: Training) -> Advice | None:
    if training.is_continued:
        return Advice(
            topic="start",
            what="hold the continued encoder against the one it began as: beit worth does, in one table",
            why="continuing was worth -0.5 to +4.2 points here, and where all images are alike it cost up to 6 by k-NN;"
            " that was a small encoder of 32,000 crops, not public weights of millions of images",
            where="results.md",
        )
    if case.num_images >= MANY_PHOTOS:
        return Advice(
            topic="start",
            what="begin from random weights, as published: so many images are enough",
            why="BEiT-B from ImageNet-1k alone: 83.2 % top-1 after fine-tuning (published, not run here)",
            where="finetuning.md",
        )
    if case.has_gpu:
        recipe = "continue_base_patch16_224" if case.num_images >= SOME_PHOTOS else "continue_small_patch16_224"
        return Advice(
            topic="start",
            what="begin with public weights if there are any of such images: beit import, then beit pretrain --init "
            f"ENCODER --recipe {recipe}; beit worth says whether it pays",
            why="not measured here, where no public weights could be had; small encoders of our own, continued on "
            "images of another kind, gained -0.5 to +4.2 points",
            where="results.md",
        )
    return Advice(
        topic="start",
        what="begin from random weights; few images do for a training of minutes",
        why="in 1000 steps 150 images were worth as much as 32,000: 4 to 5 points above random weights",
        where="results.md",
    )


def _batch(training: Training) -> Advice | None:
    if training.batch <= _SMALL_BATCH or training.steps >= _LONG_RUN_STEPS or training.is_continued:
        return None
    if training.steps > _SHORT_RUN_STEPS and training.width > 384:
        return None
    return Advice(
        topic="batch",
        what="take smaller batches, such as --set train.global_batch_size=32 with half the learning rate: as many "
        f"images in more than {large(training.steps)} {'step' if training.steps == 1 else 'steps'}, and steps teach",
        why="one pass over CIFAR-10 in batches of 32 gave a linear probe of 42.6 %, in batches of 256 37.8 %, in "
        "the same time",
        where="results.md",
    )


def _views(training: Training) -> Advice | None:
    if training.views == 0 or training.tokenize_share is None:
        return None
    reuse = training.epochs / training.views
    if training.views > _ENOUGH_VIEWS and training.tokenize_share > _SLOW_TOKENS:
        fewer = max(_ENOUGH_VIEWS, training.views // 4)
        return Advice(
            topic="views",
            what=f"--views {fewer} tokenises in {fewer / training.views:.0%} of the time, for a view that is seen "
            f"{in_digits(training.epochs / fewer)} times",
            why="one view seen 20 times did as well as sixteen seen once or twice (8.31 and 8.29 bits) in 800 steps",
            where="results.md",
        )
    if reuse < 1 / _MUCH_REUSE:
        return Advice(
            topic="views",
            what=f"--views {max(1, round(training.epochs))} is enough: {in_digits(training.epochs)} passes never see "
            f"most of {count(training.views, 'view')}",
            why="a pass over the images takes one view of each",
            where="pretraining.md",
        )
    return None


def _words(training: Training) -> Advice | None:
    if training.width < 384 or training.tokenizer != "mini":
        return None
    return Advice(
        topic="words",
        what="--tokenizer dall-e for the paper's words (215 MB, downloaded once); beit tokenizer report says which "
        "words suit your images",
        why="mini's 1024 words are painted well and made for trials; on a processor DALL-E's take 257 times as long",
        where="results.md",
    )


def _labels(case: Case, training: Training) -> tuple[Advice, ...]:
    labels = case.num_labels
    if not labels:
        return ()
    probe = "beit finetune linear-probe, and knn beside it"
    if labels <= _FEW_LABELS:
        what, why = (
            f"{probe}: seconds, and fine-tuning is no better yet",
            "30 labels of three classes: 56.0 % by linear probe, 57.5 % by k-NN, 52.0 % fine-tuned",
        )
    elif labels <= SOME_LABELS:
        what, why = (
            "fine-tune with --recipe small_500, a hundred passes; the linear probe, seconds, beside it",
            "500 labels: 40.9 % fine-tuned, 36.6 % by linear probe; from random weights 31.9 and 27.1 %",
        )
    elif labels < MANY_LABELS:
        what, why = (
            f"{probe} first; fine-tune where there is time for 20 passes and more",
            "5000 labels: 50.8 % by linear probe in a minute, 44.5 % after 4 passes of fine-tuning, 57.2 % after 20",
        )
    elif labels < MOST_LABELS:
        what, why = (
            "fine-tune with --recipe small_50k, the linear probe beside it",
            "10,000 labels, 50 passes: 54.2 % fine-tuned, 45.4 % from random weights",
        )
    else:
        what, why = (
            "fine-tune with the published recipe of your encoder's size",
            "50,000 labels: 54.3 % by linear probe, 51.7 % after one pass of fine-tuning; more were not tried here",
        )
    advice = (Advice(topic="labels", what=what, why=why, where="results.md"),)
    return (*advice, _adaptation(training)) if training.width >= 768 and labels < MANY_LABELS else advice


def _adaptation(training: Training) -> Advice:
    return Advice(
        topic="adaptation",
        what="--set adapt=last:4 if memory or time are short (lora:16: memory alone); else train all of it",
        why="of a base model's step last:4 takes 51 % of the time and lora:16 84 %, with 341 and 28 MB of gradients "
        "and moments for 1029; which learns best has not been measured here",
        where="finetuning.md",
    )

"""What a pre-training will take: the one place that says so, for `beit pretrain` and for `beit plan`.

Torch-free, unless an encoder is continued.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from beit.common.config import load_config
from beit.common.forecast.hardware import Hardware, this_machine
from beit.common.forecast.loading import PHOTO_MEGAPIXELS, sample_seconds
from beit.common.forecast.model import TrainedModel, vit_model
from beit.common.forecast.rules import Problem, problems_of
from beit.common.forecast.training import TrainingForecast
from beit.common.reading.order import check_lanes
from beit.common.training.config import TrainingPlan
from beit.common.training.outlook.forecast import forecast_run, settled_precision
from beit.common.vit.config import Adaptation, ViTConfig, build_vit_config
from beit.pretrain.advice import another_size, check_views, little_training
from beit.pretrain.config import PretrainConfig as PretrainConfig  # for who asks here, too
from beit.pretrain.config import early_block
from beit.pretrain.masking import max_num_masked

RECIPES = Path(__file__).parent / "recipes"


class Start(NamedTuple):
    """The shape to train, and how much of it is."""

    shape: ViTConfig
    adaptation: Adaptation = Adaptation()
    is_continued: bool = False
    is_input_trained: bool = False
    """Whether something before the blocks is trained although these are kept."""


class _Sides(NamedTuple):
    """What of a store decides on the shape."""

    img_size: int
    patch_size: int
    num_channels: int = 3


def load(recipe: str | None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Return the settings that `beit pretrain --recipe RECIPE --set OVERRIDE ...` would have."""
    return load_config(PretrainConfig, recipe=recipe, overrides=list(overrides), recipe_dir=RECIPES)


def forecast(
    config: PretrainConfig,
    *,
    num_images: int,
    img_size: int,
    patch_size: int,
    vocab_size: int,
    views: int,
    num_shards: int = 1,
    num_held_out: int = 0,
    hardware: Hardware | None = None,
    stored_megapixels: float = PHOTO_MEGAPIXELS,
    is_materialized: bool = False,
    probed_images: int = 0,
    start: Start | None = None,
    plan: TrainingPlan | None = None,
) -> TrainingForecast:
    """Return what a pre-training takes.

    Args:
        config: Its settings.
        num_images: To train on: usable images of the store without those held out.
        img_size: Side of a view in pixels.
        patch_size: Side of a patch.
        vocab_size: Of the visual tokens; of no use to the objective of pixels.
        views: Stored per image, K; 0 where they are drawn while training.
        num_shards: Of the store.
        num_held_out: Images that evaluations measure on, at most.
        hardware: Where it happens; left out, here.
        stored_megapixels: Of an image in the store.
        is_materialized: Whether the store holds crops.
        probed_images: Labelled images that every evaluation looks at, too.
        start: Shape and adaptation; left out, what the settings say.
        plan: Of a run that begins; left out, what the settings make.
    """
    hardware = settled_precision(config, hardware or this_machine())
    begins = start or starting_shape(config, img_size=img_size, patch_size=patch_size)
    model = trained_model(config, begins, vocab_size=vocab_size, hardware=hardware)
    measured = min(num_held_out, config.held_out.max_images)
    beside = min(config.held_out.train_images, measured)
    found = forecast_run(
        config,
        model,
        hardware,
        num_samples=num_images,
        seconds_per_image=sample_seconds(
            img_size, stored_megapixels=stored_megapixels, is_materialized=is_materialized
        ),
        evaluation_images=measured + beside + 2 * probed_images,
        evaluated_at_once=min(config.held_out.micro_batch_size, -(-measured // hardware.num_devices)),
        tokens=1 + begins.shape.num_patches,
        copies=1 + (config.train.early_stop_evals is not None and measured > 0),
        problems=_rules(config, begins.shape, views=views, num_shards=num_shards),
        plan=plan,
    )
    little = little_training(num_images, total_steps=found.steps, batch=found.global_batch_size)
    if little is None or begins.is_continued:
        return found
    return found.with_problems(Problem.advice(little))


def starting_shape(config: PretrainConfig, *, img_size: int, patch_size: int) -> Start:
    """Return the shape that the settings make on views of a size: random weights, or the encoder that is continued."""
    if config.init is None:
        return Start(build_vit_config(config.model, img_size=img_size, patch_size=patch_size))
    from beit.pretrain.start import starting_point  # brings torch

    begins = starting_point(config, _Sides(img_size, patch_size))
    source = begins.continued
    is_new = source is not None and not source.source.architecture.use_mask_token
    return Start(begins.architecture, begins.adaptation, True, is_new or begins.adaptation.rank is not None)


def trained_model(config: PretrainConfig, start: Start, *, vocab_size: int, hardware: Hardware) -> TrainedModel:
    """Return the numbers of the model under the settings' objective."""
    shape, extra_blocks = start.shape, config.objective.aggregate
    num_masked = max_num_masked(config.mask, shape.grid_size)
    rows = shape.num_patches if config.objective.kind == "all_tokens" else num_masked
    outputs = vocab_size if config.objective.needs_tokens else shape.in_chans * shape.patch_size**2
    return vit_model(
        shape,
        head_rows=2 * rows if extra_blocks else rows,
        head_outputs=outputs,
        last_rows=rows + 1 if extra_blocks else rows,  # CLS
        extra_blocks=extra_blocks,
        frozen_blocks=start.adaptation.frozen_blocks(shape.depth),
        lora_rank=start.adaptation.rank,
        is_input_trained=start.is_input_trained,
        precision=hardware.precision,
        device=hardware.device,
        is_recomputed=config.speed.activation_checkpointing,
    )


def _rules(config: PretrainConfig, shape: ViTConfig, *, views: int, num_shards: int) -> tuple[Problem, ...]:
    """Return what the run would refuse, and what it would warn of at once."""
    checks: list[Callable[[], object]] = [lambda: check_views(config, views, "the store")]
    if config.objective.aggregate:
        checks.append(lambda: early_block(shape, config.objective.aggregate_from))
    lanes = config.reader.lanes
    if lanes is not None and lanes != 1:
        shards = np.ones(num_shards, dtype=np.int64)
        checks.append(lambda: check_lanes(lanes, shards, config.train.global_batch_size))
    another = another_size(config=config, sides=(shape.img_size, shape.patch_size))
    advice = () if another is None else (Problem.advice(another),)
    return problems_of(*checks) + advice

"""What a fine-tuning will take: the one place that says so, for `beit finetune` and for `beit plan`.

Torch-free for classification from an encoder or random weights; a segmentation's head is counted by torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from beit.common.config import load_config
from beit.common.forecast.hardware import Hardware, this_machine
from beit.common.forecast.loading import PHOTO_MEGAPIXELS, sample_seconds
from beit.common.forecast.model import TrainedModel, head_parameters, vit_model
from beit.common.forecast.training import TrainingForecast
from beit.common.training.config import TrainingPlan
from beit.common.training.outlook.forecast import forecast_run, settled_precision
from beit.common.vit.agreement import channels_of
from beit.common.vit.config import Adaptation, ViTConfig, build_vit_config
from beit.common.vit.description import read_encoder_config
from beit.finetune.config import RANDOM_ENCODER
from beit.finetune.config import FinetuneConfig as FinetuneConfig  # for who asks here, too
from beit.finetune.segmentation.config import HeadConfig, SegmentationConfig

RECIPES = Path(__file__).parent / "recipes"
_AUGMENTED = 1.6
"""Times the work of a view of pre-training that one of fine-tuning is, with RandAugment and erasing; assumed."""
_WORKER_BYTES = 35e6
"""Of a data worker that reads labelled tables and augments, more than of one that reads a token store; measured."""


def load(recipe: str | None, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Return the settings that `beit finetune classification --recipe RECIPE --set OVERRIDE ...` would have."""
    return load_config(FinetuneConfig, recipe=recipe, overrides=list(overrides), recipe_dir=RECIPES)


def forecast(
    config: FinetuneConfig,
    *,
    num_images: int,
    num_classes: int,
    num_val: int = 0,
    hardware: Hardware | None = None,
    stored_megapixels: float = PHOTO_MEGAPIXELS,
    shape: ViTConfig | None = None,
    adaptation: Adaptation | None = None,
    plan: TrainingPlan | None = None,
) -> TrainingForecast:
    """Return what a fine-tuning to classes takes.

    Args:
        config: Its settings.
        num_images: Labelled, to train on in an epoch.
        num_classes: Of the head.
        num_val: Images that evaluations measure on.
        hardware: Where it happens; left out, here.
        stored_megapixels: Of an image.
        shape: Of the encoder, where it is not on this disk; left out, that of `config.encoder`, or random weights.
        adaptation: How much of it is trained; left out, what the settings say.
        plan: Of a run that begins; left out, what the settings make.
    """
    hardware = settled_precision(config, hardware or this_machine())
    shape = shape or starting_shape(config)
    adaptation = adaptation or adaptation_of(config, shape)
    model = trained_model(config, shape, adaptation, num_classes=num_classes, hardware=hardware)
    return forecast_run(
        config,
        model,
        hardware,
        num_samples=num_images,
        seconds_per_image=_AUGMENTED * sample_seconds(shape.img_size, stored_megapixels=stored_megapixels),
        worker_bytes=_WORKER_BYTES,
        evaluation_images=num_val,
        evaluated_at_once=min(config.evaluation.micro_batch_size, -(-num_val // hardware.num_devices)),
        tokens=1 + shape.num_patches,
        rows_together=2 if config.mix.is_on else 1,
        artifacts=2,
        plan=plan,
    )


def forecast_segmentation(
    config: SegmentationConfig,
    *,
    shape: ViTConfig,
    adaptation: Adaptation,
    head: HeadConfig,
    num_images: int,
    num_classes: int,
    evaluated_crops: float = 0.0,
    hardware: Hardware | None = None,
    stored_megapixels: float = PHOTO_MEGAPIXELS,
    plan: TrainingPlan | None = None,
) -> TrainingForecast:
    """Return what a fine-tuning to masks takes; the head is counted by torch.

    Args:
        config: Its settings.
        shape: Of the encoder, at the size of the crops.
        adaptation: How much of it is trained.
        head: With nothing left open.
        num_images: With masks, to train on.
        num_classes: Of the pixels.
        evaluated_crops: That an evaluation looks at.
        hardware: Where it happens; left out, here.
        stored_megapixels: Of an image.
        plan: Of a run that begins; left out, what the settings make.
    """
    from beit.finetune.segmentation.cost import head_cost  # brings torch

    hardware = settled_precision(config, hardware or this_machine())
    cost = head_cost(shape, head, num_classes=num_classes)
    encoder = vit_model(
        shape,
        head_rows=0,
        head_outputs=0,
        frozen_blocks=adaptation.frozen_blocks(shape.depth),
        lora_rank=adaptation.rank,
        precision=hardware.precision,
        device=hardware.device,
        is_recomputed=config.speed.activation_checkpointing,
    )
    no_head = head_parameters(shape, 0)  # which this encoder has not: heads of masks bring norms of their own
    halved = 1.0 if hardware.precision == "fp32" else 0.6
    model = replace(
        encoder,
        parameters=encoder.parameters - no_head + cost.parameters,
        trained=encoder.trained - no_head + cost.parameters,
        flops_per_image=encoder.flops_per_image + 3 * cost.flops,
        kept_bytes=encoder.kept_bytes + halved * cost.kept_bytes,
        passing_bytes=max(encoder.passing_bytes, 8.0 * num_classes * shape.img_size**2),
        forward_bytes=encoder.forward_bytes + halved * cost.kept_bytes / 2,
        row_bytes=4.0 * shape.img_size**2,
    )
    is_joint = head.kind != "linear" and head.norm == "batch"
    return forecast_run(
        config,
        model,
        hardware,
        num_samples=num_images,
        seconds_per_image=_AUGMENTED * sample_seconds(shape.img_size, stored_megapixels=stored_megapixels),
        worker_bytes=_WORKER_BYTES,
        evaluation_images=evaluated_crops,
        evaluated_at_once=config.evaluation.micro_batch_size if evaluated_crops else 0,
        tokens=0 if is_joint else 1 + shape.num_patches,
        rows_together=None if is_joint else 1,
        artifacts=2,
        plan=plan,
    )


def starting_shape(config: FinetuneConfig) -> ViTConfig:
    """Return the shape that is trained: the encoder's, at the size of the settings, or that of random weights."""
    image = config.image
    if config.encoder in (None, RANDOM_ENCODER):
        shape = build_vit_config(
            config.model.for_random_weights(),
            img_size=image.img_size or 224,
            patch_size=image.patch_size or 16,
            use_mask_token=False,
            init="finetune",
            in_chans=config.source.decoding.num_channels,
        )
    else:
        assert config.encoder is not None
        stored = read_encoder_config(config.encoder).architecture
        shape = replace(
            stored,
            img_size=image.img_size or stored.img_size,
            in_chans=channels_of(stored, config.model),
            use_mask_token=False,
            init="finetune",
            final_norm=False,
        )
    return shape if shape.pos_bias == "none" else replace(shape, pos_bias="per_block")


def adaptation_of(config: FinetuneConfig, shape: ViTConfig) -> Adaptation:
    """Return how much of an encoder the settings train."""
    if config.freeze_blocks:
        return Adaptation(last_blocks=shape.depth - config.freeze_blocks)
    return Adaptation.parse(config.adapt)


def trained_model(
    config: FinetuneConfig, shape: ViTConfig, adaptation: Adaptation, *, num_classes: int, hardware: Hardware
) -> TrainedModel:
    """Return the numbers of an encoder with a head for classes."""
    return vit_model(
        shape,
        head_rows=1,
        head_outputs=num_classes,
        frozen_blocks=adaptation.frozen_blocks(shape.depth),
        lora_rank=adaptation.rank,
        precision=hardware.precision,
        device=hardware.device,
        is_recomputed=config.speed.activation_checkpointing,
    )

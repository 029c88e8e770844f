"""What the distillation of a tokenizer will take: the one place that says so. Torch-free.

Trained are two transformers, one behind the other; beside them a teacher is asked for features, which keeps nothing.
"""

from __future__ import annotations

from beit.common.forecast.hardware import Hardware, this_machine
from beit.common.forecast.loading import PHOTO_MEGAPIXELS, sample_seconds
from beit.common.forecast.model import FLOAT, TrainedModel, vit_model
from beit.common.forecast.training import TrainingForecast
from beit.common.training.config import TrainingPlan
from beit.common.training.outlook.forecast import forecast_run, settled_precision
from beit.tokenize.distillation.config import DistillationConfig
from beit.tokenize.encoders import TeacherCost

_EVALUATED_AT_ONCE = 32


def forecast_distillation(
    config: DistillationConfig,
    teacher: TeacherCost,
    *,
    num_images: int,
    num_held_out: int = 0,
    hardware: Hardware | None = None,
    stored_megapixels: float = PHOTO_MEGAPIXELS,
    plan: TrainingPlan | None = None,
) -> TrainingForecast:
    """Return what the distillation of a tokenizer takes; a teacher that is code is counted as nothing.

    Args:
        config: Its settings.
        teacher: What is asked for features.
        num_images: To train on.
        num_held_out: To measure on.
        hardware: Where it happens; left out, here.
        stored_megapixels: Of an image.
        plan: Of a run that begins; left out, what the settings make.
    """
    hardware = settled_precision(config, hardware or this_machine())
    sides = {config.model.img_size, teacher.img_size}
    return forecast_run(
        config,
        distilled_model(config, teacher, hardware),
        hardware,
        num_samples=num_images,
        seconds_per_image=sum(sample_seconds(side, stored_megapixels=stored_megapixels) for side in sides),
        evaluation_images=2 * min(num_held_out, config.data.num_eval_images),
        evaluated_at_once=min(_EVALUATED_AT_ONCE, num_held_out),
        tokens=1 + config.model.grid_size**2,
        copies=2,
        plan=plan,
    )


def distilled_model(config: DistillationConfig, teacher: TeacherCost, hardware: Hardware) -> TrainedModel:
    """Return the numbers of tokenizer, decoder and teacher as of one model."""
    shape, positions = config.model, config.model.grid_size**2
    decoder = shape.transformer(shape.grid_size, 1, in_chans=shape.code_dim, depth=config.decoder.depth)
    parts = [
        vit_model(
            transformer,
            head_rows=positions,
            head_outputs=outputs,
            precision=hardware.precision,
            device=hardware.device,
            is_recomputed=config.speed.activation_checkpointing,
        )
        for transformer, outputs in ((shape.vit, shape.code_dim), (decoder, teacher.dim))
    ]
    hidden = shape.embed_dim * (shape.embed_dim + 1)  # of the first layer of either projection, before its tanh
    words = shape.vocab_size * shape.code_dim  # directions, and the sums that they are of
    scores = FLOAT * positions * shape.vocab_size
    cheap = 2.0 * positions * (2 * shape.embed_dim**2 + shape.code_dim * shape.vocab_size)
    trained = sum(part.trained for part in parts) + 2 * hidden
    return TrainedModel(
        parameters=trained + 2 * words,
        trained=trained,
        flops_per_image=sum(part.flops_per_image for part in parts) + teacher.flops + 3 * cheap,
        kept_bytes=sum(part.kept_bytes for part in parts) + FLOAT * positions * 4 * (shape.embed_dim + teacher.dim),
        passing_bytes=max(scores, *(part.passing_bytes for part in parts)),
        # The teacher is there all along and in no checkpoint.
        step_bytes=sum(part.step_bytes for part in parts) + FLOAT * teacher.parameters,
        forward_bytes=max(scores, *(part.forward_bytes for part in parts)) + FLOAT * positions * 2 * teacher.dim,
        row_bytes=3.0 * sum(side**2 for side in {shape.img_size, teacher.img_size}),
    )

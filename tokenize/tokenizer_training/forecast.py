"""What the training of a dVAE will take: the one place that says so. Torch-free."""

from __future__ import annotations

from beit.common.forecast.hardware import Hardware, this_machine
from beit.common.forecast.loading import PHOTO_MEGAPIXELS, sample_seconds
from beit.common.forecast.training import TrainingForecast
from beit.common.training.config import TrainingPlan
from beit.common.training.outlook.forecast import forecast_run, settled_precision
from beit.tokenize.encoders import dvae_model
from beit.tokenize.tokenizer_training.config import TokenizerTrainConfig


def forecast_tokenizer(
    config: TokenizerTrainConfig,
    *,
    num_images: int,
    num_held_out: int = 0,
    hardware: Hardware | None = None,
    stored_megapixels: float = PHOTO_MEGAPIXELS,
    plan: TrainingPlan | None = None,
) -> TrainingForecast:
    """Return what the training of a dVAE takes.

    Args:
        config: Its settings.
        num_images: To train on.
        num_held_out: To measure on.
        hardware: Where it happens; left out, here.
        stored_megapixels: Of an image.
        plan: Of a run that begins; left out, what the settings make.
    """
    hardware = settled_precision(config, hardware or this_machine())
    data = config.data
    return forecast_run(
        config,
        dvae_model(config.model, crop_size=data.crop_size, crops_per_image=data.crops_per_image),
        hardware,
        num_samples=num_images,
        seconds_per_image=sample_seconds(data.view_size, stored_megapixels=stored_megapixels),
        evaluation_images=min(num_held_out, data.num_eval_images),
        rows_together=None,
        copies=2,
        plan=plan,
    )

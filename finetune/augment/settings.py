"""Settings of augmentation and mixing."""

from __future__ import annotations

from typing import Annotated

from beit.common.config import checked, within
from beit.common.errors import require
from beit.common.views import AugmentConfig, Resample
from beit.finetune.augment.rand_augment import OFF, parse_policy


@checked("augment")
class TrainAugmentConfig:
    """Distribution of training views. The defaults are those of BEiT's fine-tuning."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest crop area, as a fraction of the image area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest crop aspect ratio, width / height."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something, as in text or traffic signs."""
    color_jitter: Annotated[float, within("[0, 1]")] = 0.0
    """Brightness, contrast and saturation factors are drawn from 1 +- this; 0 leaves colours alone. Excludes
    RandAugment, which has its own changes of colour."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment as timm spells it: strength m (0 to 10), its spread mstd, operations per image n; or "none"."""
    erase_prob: Annotated[float, within("[0, 1]")] = 0.25
    """Probability of replacing a random rectangle by noise."""
    interpolation: Resample = "bicubic"
    """Filter of the resize, antialiased."""

    def __post_init__(self) -> None:
        """Check what excludes each other, and the view."""
        require(
            parse_policy(self.rand_augment) is None or not self.color_jitter,
            f"augment.color_jitter ({self.color_jitter}) and augment.rand_augment ({self.rand_augment}) exclude each "
            f"other; set one of them to 0 or {OFF}",
        )
        self.views()

    def views(self) -> AugmentConfig:
        """Return the settings in the form that draws views, checked."""
        jitter = self.color_jitter
        return AugmentConfig(
            scale=self.scale, ratio=self.ratio, flip=self.flip, brightness=jitter, contrast=jitter, saturation=jitter
        )


@checked("mix")
class MixConfig:
    """Mixup and cutmix: how training images are blended in pairs."""

    mixup_alpha: Annotated[float, within("[0, 4]", "0 switches it off")] = 0.8
    """Mixup draws the share of the first image from Beta(alpha, alpha); 0 leaves mixup out."""
    cutmix_alpha: Annotated[float, within("[0, 4]", "0 switches it off")] = 1.0
    """Cutmix draws the share of the area likewise; 0 leaves cutmix out."""
    prob: Annotated[float, within("[0, 1]")] = 1.0
    """Probability that a step mixes at all."""
    switch_prob: Annotated[float, within("[0, 1]")] = 0.5
    """Probability of cutmix where both are on."""

    @property
    def is_on(self) -> bool:
        """Whether anything is mixed."""
        return self.prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

"""Settings of augmentation and mixing."""

from __future__ import annotations

from dataclasses import dataclass

from beit.common.errors import require
from beit.common.views import AugmentConfig, Resample
from beit.finetune.augment.rand_augment import OFF, parse_policy


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainAugmentConfig:
    """Distribution of training views. The defaults are those of BEiT's fine-tuning."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest crop area, as a fraction of the image area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest crop aspect ratio, width / height."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something, as in text or traffic signs."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation factors are drawn from 1 +- this; 0 leaves colours alone. Excludes
    RandAugment, which has its own changes of colour."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment as timm spells it: strength m (0 to 10), its spread mstd, operations per image n; or "none"."""
    erase_prob: float = 0.25
    """Probability of replacing a random rectangle by noise."""
    repeats: int = 1
    """Repeated augmentation: views of an image in a step, each drawn anew; a step then has that many times fewer
    images. 3 in DeiT."""
    interpolation: Resample = "bicubic"
    """Filter of the resize, antialiased."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 <= self.color_jitter <= 1, f"augment.color_jitter ({self.color_jitter}) must lie in [0, 1]")
        require(self.repeats >= 1, f"augment.repeats ({self.repeats}) must be at least 1")
        require(0 <= self.erase_prob <= 1, f"augment.erase_prob ({self.erase_prob}) must lie in [0, 1]")
        require(
            parse_policy(self.rand_augment) is None or not self.color_jitter,
            f"augment.color_jitter ({self.color_jitter}) and augment.rand_augment ({self.rand_augment}) exclude each "
            f"other; set one of them to 0 or {OFF}",
        )
        self.views()

    def views(self) -> AugmentConfig:
        """Return the settings in the form that draws views.

        Raises:
            InputError: a value is out of range.
        """
        jitter = self.color_jitter
        return AugmentConfig(
            scale=self.scale, ratio=self.ratio, flip=self.flip, brightness=jitter, contrast=jitter, saturation=jitter
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    """Mixup and cutmix: how training images are blended in pairs."""

    mixup_alpha: float = 0.8
    """Mixup draws the share of the first image from Beta(alpha, alpha); 0 leaves mixup out."""
    cutmix_alpha: float = 1.0
    """Cutmix draws the share of the area likewise; 0 leaves cutmix out."""
    prob: float = 1.0
    """Probability that a step mixes at all."""
    switch_prob: float = 0.5
    """Probability of cutmix where both are on."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            require(0 <= value <= 4, f"mix.{name} ({value}) must lie in [0, 4]; 0 switches it off")
        for name in ("prob", "switch_prob"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"mix.{name} ({value}) must lie in [0, 1]")

    @property
    def is_on(self) -> bool:
        """Whether anything is mixed."""
        return self.prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

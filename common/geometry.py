"""The one geometry rule: img_size / patch_size = grid_size = token_img_size / downsampling."""

from __future__ import annotations

from dataclasses import dataclass

from beit.common.errors import require


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sides of the square views that the ViT and the tokenizer see, such that one visual token falls on each patch.

    Args:
        img_size: Side of the ViT's view in pixels.
        patch_size: Side of a patch in pixels.
        downsampling: Pixels per token and side of the tokenizer's view; 8 for DALL-E's dVAE.

    Raises:
        InputError: patch_size does not divide img_size, or a side is not positive.

    Source: BEiT §2.1 and §2.2; 224 / 16 = 14 = 112 / 8.
    """

    img_size: int
    patch_size: int
    downsampling: int = 8

    def __post_init__(self) -> None:
        """Check the rule."""
        require(self.patch_size >= 1, f"patch_size ({self.patch_size}) must be at least 1 pixel")
        require(self.downsampling >= 1, f"downsampling ({self.downsampling}) must be at least 1 pixel")
        require(
            self.img_size >= self.patch_size,
            f"img_size ({self.img_size}) must be at least patch_size ({self.patch_size})",
        )
        lower = self.img_size // self.patch_size * self.patch_size
        require(
            self.img_size % self.patch_size == 0,
            f"img_size ({self.img_size}) must be a multiple of patch_size ({self.patch_size}), so that the patches "
            f"tile the image; nearest: {lower} or {lower + self.patch_size}",
        )

    @property
    def grid_size(self) -> int:
        """Patches, and visual tokens, per side."""
        return self.img_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches per image, CLS excluded."""
        return self.grid_size**2

    @property
    def token_img_size(self) -> int:
        """Side in pixels of the view the tokenizer sees."""
        return self.grid_size * self.downsampling

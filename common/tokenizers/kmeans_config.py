"""Shape of a k-means tokenizer, importable without torch. The network is `beit.common.tokenizers.kmeans`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from beit.common.config import at_least, checked, within
from beit.common.errors import require
from beit.common.vit.config import ViTConfig

Standardise = Literal["channel", "patch", "none"]


@checked()
class KMeansConfig:
    """Words that are centres of pixels, or of a transformer's features; with the weights it is the whole tokenizer."""

    vocab_size: Annotated[int, within("[2, 65536]", "token stores hold uint16")] = 1024
    """Number of visual words, V."""
    patch_size: Annotated[int, at_least(1)] = 8
    """Pixels per word along each side; the transformer's own where there is one."""
    standardise: Standardise = "channel"
    """What happens to a vector before its direction is looked at: every number has a mean subtracted and is divided by
    a deviation, both over all images (channel) or over the patch itself (patch, pixels only); or nothing."""
    anchor: Annotated[float, at_least(0)] = 0.0
    """Length of a number that is added to every vector, in square roots of its length: a direction then tells strong
    patterns from weak ones. 0 looks at the direction alone."""
    vit: ViTConfig | None = None
    """The transformer, no deeper than needed; None makes words of pixels."""
    pixel_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of the transformer's input, of pixels in [0, 1]."""
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Likewise."""

    def __post_init__(self) -> None:
        require(
            self.vit is None or self.patch_size == self.vit.patch_size,
            f"patch_size ({self.patch_size}) must be that of the transformer",
        )
        require(
            self.vit is None or self.standardise != "patch",
            "standardise (patch) is for words of pixels; those of a teacher's features take channel or none",
        )

    @property
    def dim(self) -> int:
        """Numbers that describe a patch, D."""
        return 3 * self.patch_size**2 if self.vit is None else self.vit.embed_dim

    @property
    def counts(self) -> tuple[int, ...]:
        """What is a number or a size of tensors of its own."""
        vit = self.vit
        if vit is None:
            return self.vocab_size, self.dim
        side = vit.grid_size[0]
        rows = (2 * side - 1) ** 2 if vit.pos_bias != "none" else side**2 if vit.use_abs_pos_emb else 0
        return self.vocab_size, vit.embed_dim, vit.depth, vit.num_heads, vit.patch_size, rows

    def identity(self) -> dict[str, Any]:
        """Return the settings that a fingerprint covers: all but defaults, so that later ones may join."""
        found = _changed(self)
        return found if self.vit is None else {**found, "vit": _changed(self.vit)}


def _changed(config: Any) -> dict[str, Any]:
    """Return the fields of a flat settings class whose values are not their defaults, and the vocabulary."""
    named = {field.name: (getattr(config, field.name), field.default) for field in dataclasses.fields(config)}
    return {
        name: value
        for name, (value, default) in named.items()
        if (value != default or name == "vocab_size") and not dataclasses.is_dataclass(value)
    }

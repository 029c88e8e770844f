"""Shape of a distilled tokenizer, importable without torch. The network is `beit.common.tokenizers.vqkd`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from beit.common.config import at_least, checked, within
from beit.common.errors import require
from beit.common.vit.config import ViTConfig


@checked("model")
class VQKDConfig:
    """Shape of the vision transformer and of the words; with the weights it is the whole tokenizer.

    The defaults are the published ones of BEiT v2.
    """

    vocab_size: Annotated[int, within("[2, 65536]", "token stores hold uint16")] = 8192
    """Number of visual words; at most 65536, because stores hold uint16."""
    code_dim: Annotated[int, at_least(2, "unit vectors of one number cannot differ")] = 32
    """Length of a code vector. Short vectors keep most of the vocabulary in use."""
    img_size: Annotated[int, at_least(1)] = 224
    """Side of the images it takes, in pixels: this one only."""
    patch_size: Annotated[int, at_least(1)] = 16
    """Side of the square that becomes one word, in pixels."""
    embed_dim: Annotated[int, at_least(1)] = 768
    """Channels of the transformer."""
    depth: Annotated[int, at_least(1)] = 12
    """Its blocks."""
    num_heads: Annotated[int, at_least(1)] = 12
    """Its attention heads; must divide embed_dim."""
    mlp_ratio: Annotated[float, within("(0, 100]")] = 4.0
    """Hidden width of its MLPs divided by embed_dim."""

    def __post_init__(self) -> None:
        require(
            self.img_size % self.patch_size == 0,
            f"model.img_size ({self.img_size}) must be a multiple of model.patch_size ({self.patch_size})",
        )
        require(
            self.embed_dim % self.num_heads == 0,
            f"model.embed_dim ({self.embed_dim}) must be a multiple of model.num_heads ({self.num_heads})",
        )

    @property
    def grid_size(self) -> int:
        """Words per side."""
        return self.img_size // self.patch_size

    @property
    def vit(self) -> ViTConfig:
        """The transformer: absolute positions, no layer scale, a last norm of its own.

        Source: the released BEiT v2 code. Differs: nothing.
        """
        return self.transformer(self.img_size, self.patch_size, in_chans=3, depth=self.depth)

    def transformer(self, img_size: int, patch_size: int, *, in_chans: int, depth: int) -> ViTConfig:
        """Return a transformer of this width for other input; the decoder in training is one, too."""
        return ViTConfig(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=self.embed_dim,
            depth=depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            init_values=0.0,
            drop_path=0.0,
            use_abs_pos_emb=True,
            pos_bias="none",
            use_mask_token=False,
            init="finetune",
            final_norm=True,
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """What is a number or a size of tensors of its own."""
        return self.vocab_size, self.code_dim, self.grid_size**2, self.patch_size, self.embed_dim, self.depth

    def identity(self) -> dict[str, Any]:
        """Return the settings that a fingerprint covers: all."""
        return dataclasses.asdict(self)

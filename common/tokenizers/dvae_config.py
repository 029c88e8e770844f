"""Shape of the compact discrete VAE, importable without torch. The network is `beit.common.tokenizers.dvae`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from beit.common.config import at_least, checked, one_of, within
from beit.common.errors import require

_LATER_FIELDS = ("channels", "reconstruction")
"""Fields that format version 1 gained after its first tokenizers were made."""


@checked()
class DiscreteVAEConfig:
    """Shape of a compact dVAE; together with the weights it is the whole tokenizer."""

    vocab_size: Annotated[int, within("[2, 65536]", "token stores hold uint16")] = 8192
    """Number of visual words. 8192 as in BEiT; at most 65536, because stores hold uint16."""
    downsampling: Annotated[int, one_of((4, 8, 16))] = 8
    """Pixels per token along each side: 4, 8 or 16."""
    width: int = 128
    """Channels of the residual stream at one position per token."""
    num_blocks: Annotated[int, at_least(1)] = 4
    """Residual blocks in the encoder, and again in the decoder."""
    code_dim: Annotated[int, at_least(2, "unit vectors of one number cannot differ")] = 32
    """Length of a code vector. Short vectors keep most of the vocabulary in use."""
    channels: Literal[1, 3] = 3
    """What the network sees: 3 for colour, 1 for the luma of the image, for images that are grey anyway. A tokenizer
    takes and gives RGB either way."""
    reconstruction: Literal["mse", "logit_laplace"] = "mse"
    """What the decoder puts out and is trained by: pixels and their squared error, or location and scale of DALL-E's
    logit-Laplace distribution and its likelihood."""

    def __post_init__(self) -> None:
        require(
            self.width >= 8 and self.width % 2 == 0,
            f"width ({self.width}) must be an even number, at least 8; blocks halve it",
        )

    @property
    def head_channels(self) -> int:
        """Channels the decoder puts out per pixel."""
        return self.channels * (2 if self.reconstruction == "logit_laplace" else 1)

    @property
    def counts(self) -> tuple[int, ...]:
        """What is a number or a size of tensors of its own."""
        return self.vocab_size, self.width, self.num_blocks, self.code_dim

    def identity(self) -> dict[str, Any]:
        """Return the settings that a fingerprint covers.

        Fields added later are left out while they hold their defaults, so that older fingerprints stay valid.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in _LATER_FIELDS or value != defaults[name]
        }

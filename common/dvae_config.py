"""Shape of the compact discrete VAE, importable without torch. The network is `beit.common.dvae`."""

from __future__ import annotations

from dataclasses import dataclass

from beit.common.errors import require

SUPPORTED_DOWNSAMPLING = (4, 8, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscreteVAEConfig:
    """Shape of a compact dVAE; together with the weights it is the whole tokenizer."""

    vocab_size: int = 8192
    """Number of visual words. 8192 as in BEiT; at most 65536, because stores hold uint16."""
    downsampling: int = 8
    """Pixels per token along each side: 4, 8 or 16."""
    width: int = 128
    """Channels of the residual stream at one position per token."""
    num_blocks: int = 4
    """Residual blocks in the encoder, and again in the decoder."""
    code_dim: int = 32
    """Length of a code vector. Short vectors keep most of the vocabulary in use."""

    def __post_init__(self) -> None:
        """Check every field."""
        require(
            2 <= self.vocab_size <= 65536,
            f"vocab_size ({self.vocab_size}) must be 2 to 65536, because token stores hold uint16; choose one inside",
        )
        require(
            self.downsampling in SUPPORTED_DOWNSAMPLING,
            f"downsampling ({self.downsampling}) must be one of {SUPPORTED_DOWNSAMPLING}",
        )
        require(
            self.width >= 8 and self.width % 2 == 0,
            f"width ({self.width}) must be an even number, at least 8; blocks halve it",
        )
        require(self.num_blocks >= 1, f"num_blocks ({self.num_blocks}) must be at least 1")
        require(self.code_dim >= 2, f"code_dim ({self.code_dim}) must be at least 2, or unit vectors cannot differ")

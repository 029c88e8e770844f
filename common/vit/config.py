"""Shape of the vision transformer, without torch.

Here: `ViTConfig` (everything that decides which parameters exist and what a forward computes), the named sizes,
`ModelConfig`, the recipe section that picks one, and `Adaptation`, the setting that says how much of it is trained. Not
here: the modules (`common/vit/vit.py`), their initial values (`common/vit/init.py`), how a model is adapted
(`common/vit/adaptation.py`), and the heads (`pretrain/model.py`, `finetune/classification/model.py`).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal, NamedTuple

from beit.common.config import Bound, above, at_least, checked, within
from beit.common.errors import require
from beit.common.images.decoding import GREY, RGB

PosBias = Literal["none", "shared", "per_block"]
InitRule = Literal["pretrain", "finetune"]
SizeName = Literal["tiny", "small", "base", "large"]
PosResize = Literal["bicubic", "dino", "timm"]
_ADAPTATION = re.compile(r"all|last:(?P<blocks>0|[1-9]\d{0,8})|lora:(?P<rank>[1-9]\d{0,8})")
AdaptSetting = Annotated[
    str,
    Bound(
        'be "all", "last:N" (the last N blocks) or "lora:R" (updates of rank R)',
        lambda value: bool(_ADAPTATION.fullmatch(value)),
    ),
]
"""Type of the setting `adapt`, which `Adaptation.parse` reads."""


LAYER_NORM_EPS = 1e-6
"""Of BEiT, timm and the heads; the weights of other projects may have been trained with another."""


class Normalization(NamedTuple):
    """How pixels scaled to [0, 1] become network input: subtract mean, divide by std, per channel."""

    mean: tuple[float, ...]
    """Subtracted."""
    std: tuple[float, ...]
    """Divides the centred pixels."""


_LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue in grey: ITU-R BT.601."""


def for_channels(pixels: Normalization, channels: int) -> Normalization:
    """Return a normalisation for images of 1 or 3 channels; the same where it has as many.

    Of grey it stands in all three channels. Of RGB both numbers are averaged by the weights of luma. For the mean that
    is exact. The deviation of luma depends on how channels go together, which three numbers do not tell; the average
    is right where they rise and fall as one, as in grey pictures, and near it in photographs.
    """
    if len(pixels.mean) == channels:
        return pixels
    if channels == RGB:
        return Normalization(pixels.mean * RGB, pixels.std * RGB)
    mean, std = (sum(weight * value for weight, value in zip(_LUMA, values, strict=True)) for values in pixels)
    return Normalization((round(mean, 6),), (round(std, 6),))


def require_channels(section: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Refuse a mean or std that is neither of one channel nor of three."""
    for name, values in (("mean", mean), ("std", std)):
        require(
            values is None or len(values) in (GREY, RGB),
            f"{section}.{name} ({list(values or ())}) must have one number, for grey, or three, for red, green and "
            "blue",
        )
    require(
        mean is None or std is None or len(mean) == len(std),
        f"{section}.mean ({list(mean or ())}) and {section}.std ({list(std or ())}) must be of as many channels",
    )


class ViTShape(NamedTuple):
    """What one named size sets of `ViTConfig`."""

    embed_dim: int
    depth: int
    num_heads: int
    init_values: float


# base and large are the published models; small is DeiT's width at base depth; tiny is sized for a laptop CPU.
VIT_SIZES: dict[SizeName, ViTShape] = {
    "tiny": ViTShape(embed_dim=192, depth=6, num_heads=3, init_values=0.1),
    "small": ViTShape(embed_dim=384, depth=12, num_heads=6, init_values=0.1),
    "base": ViTShape(embed_dim=768, depth=12, num_heads=12, init_values=0.1),
    "large": ViTShape(embed_dim=1024, depth=24, num_heads=16, init_values=1e-5),
}


@checked("model")
class ViTConfig:
    """One vision transformer; the defaults are the paper's base model as it is pre-trained."""

    img_size: Annotated[int, at_least(1)] = 224
    """Side of the square input image, in pixels."""
    patch_size: Annotated[int, at_least(1)] = 16
    """Side of one patch, in pixels; also the stride of the patch convolution."""
    in_chans: Annotated[int, at_least(1)] = 3
    """Channels of the input: 3 for RGB, 1 for grey."""
    embed_dim: Annotated[int, at_least(1)] = 768
    """Channels of the residual stream, D."""
    depth: Annotated[int, at_least(1)] = 12
    """Number of transformer blocks."""
    num_heads: Annotated[int, at_least(1)] = 12
    """Attention heads; must divide embed_dim."""
    mlp_ratio: Annotated[float, within("(0, 100]")] = 4.0
    """Hidden width of the MLP divided by embed_dim."""
    qkv_bias: bool = True
    """Whether queries and values carry a bias (a key bias would cancel in the softmax, so there is none)."""
    init_values: Annotated[float, at_least(0, "0 turns it off")] = 0.1
    """Initial layer scale (gamma_1, gamma_2); 0 builds the blocks without it."""
    drop_path: Annotated[float, within("[0, 1)")] = 0.1
    """Stochastic depth rate of the last block; block i gets i / (depth - 1) of it."""
    use_abs_pos_emb: bool = False
    """Whether a learned absolute position embedding is added to the sequence."""
    pos_bias: PosBias = "shared"
    """Relative position bias: one table for all blocks (pre-training), one per block (fine-tuning), or none."""
    use_mask_token: bool = True
    """Whether the model owns the embedding that replaces masked patches."""
    init: InitRule = "pretrain"
    """Which of the two published weight initialisations applies."""
    final_norm: bool = False
    """Whether features pass a last norm that belongs to the encoder, as in DINO, MAE and supervised ViTs; the last norm
    of a BEiT belongs to its heads."""
    layer_norm_eps: Annotated[float, above(0)] = LAYER_NORM_EPS
    """Added to the variance in every LayerNorm."""
    pos_resize: PosResize = "bicubic"
    """Whose rule resizes an absolute position embedding: the plain one of BEiT, MAE, DeiT and Hugging Face, or that of
    the project that trained the weights."""

    def __post_init__(self) -> None:
        require(
            self.img_size % self.patch_size == 0,
            f"img_size ({self.img_size}) must be a multiple of patch_size ({self.patch_size}); change one of them",
        )
        require(
            self.embed_dim % self.num_heads == 0,
            f"model.embed_dim ({self.embed_dim}) must be a multiple of model.num_heads ({self.num_heads})",
        )

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches per side (height, width)."""
        side = self.img_size // self.patch_size
        return side, side

    @property
    def num_patches(self) -> int:
        """Patches per image, N; the sequence is one longer (CLS first)."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def name(self) -> str:
        """Conventional model name, e.g. beit_base_patch16_224; the shape replaces the size where none matches."""
        shape = self.size or f"{self.embed_dim}x{self.depth}x{self.num_heads}"
        return f"beit_{shape}_patch{self.patch_size}_{self.img_size}"

    @property
    def size(self) -> SizeName | None:
        """The named size that this is; None where it is none of them."""
        known = {size[:3]: name for name, size in VIT_SIZES.items()}
        return known.get((self.embed_dim, self.depth, self.num_heads))


@checked("model")
class ModelConfig:
    """The `[model]` section of a recipe: a named size and what may differ from it.

    Where an encoder is continued (`init`), what is left out is the encoder's.
    """

    size: SizeName | None = None
    """Named shape; every field below that is left unset takes its value from here. Of random weights base."""
    embed_dim: int | None = None
    """Channels of the residual stream."""
    depth: int | None = None
    """Number of transformer blocks."""
    num_heads: int | None = None
    """Attention heads; must divide embed_dim."""
    in_chans: Literal[1, 3] | None = None
    """Channels that the model sees: 3 for RGB, 1 for grey; of random weights as many as the images have."""
    mlp_ratio: float | None = None
    """Hidden width of the MLP divided by embed_dim; of random weights 4."""
    init_values: float | None = None
    """Initial layer scale; 0 builds the blocks without it."""
    drop_path: float = 0.1
    """Stochastic depth rate of the last block."""
    use_abs_pos_emb: bool | None = None
    """Whether a learned absolute position embedding is added; of random weights false."""
    pos_bias: Literal["auto", "none", "shared", "per_block"] = "auto"
    """Relative position bias: shared by all blocks, per_block, or none; auto is shared for random weights."""

    def for_random_weights(self) -> ModelConfig:
        """Return the section with the values of random weights where an encoder could bring others."""
        usual = {"size": "base", "mlp_ratio": 4.0, "use_abs_pos_emb": False, "pos_bias": "shared"}
        left_out = {name: value for name, value in usual.items() if getattr(self, name) in (None, "auto")}
        return replace(self, **left_out) if left_out else self  # type: ignore[arg-type]


def build_vit_config(
    model: ModelConfig,
    *,
    img_size: int,
    patch_size: int,
    in_chans: int = RGB,
    use_mask_token: bool = True,
    init: InitRule = "pretrain",
) -> ViTConfig:
    """Resolve a recipe's `[model]` section into the full shape of random weights; sizes in pixels.

    `in_chans` is what the images have; the section may say otherwise.
    """
    model = model.for_random_weights()
    assert model.size is not None
    given = {name: value for name, value in asdict(model).items() if name != "size" and value is not None}
    shape = VIT_SIZES[model.size]._asdict() | {"in_chans": in_chans} | given
    return ViTConfig(img_size=img_size, patch_size=patch_size, use_mask_token=use_mask_token, init=init, **shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """How much of an encoder a training changes; the default is all of it."""

    last_blocks: int | None = None
    """Train the last N blocks and what comes after them, keep everything below; None sets no such limit."""
    rank: int | None = None
    """Keep the encoder and train low-rank updates of its matrices, and what comes after it; None trains weights."""

    @classmethod
    def parse(cls, setting: str) -> Adaptation:
        """Read the setting `adapt`, whose form its type has checked."""
        found = _ADAPTATION.fullmatch(setting)
        assert found is not None, f"{setting} was not checked"
        blocks, rank = found["blocks"], found["rank"]
        return cls(last_blocks=None if blocks is None else int(blocks), rank=None if rank is None else int(rank))

    @property
    def is_all(self) -> bool:
        """Whether every weight is trained."""
        return self.last_blocks is None and self.rank is None

    def frozen_blocks(self, depth: int) -> int | None:
        """Return how many of the lowest blocks stay as they are, with the embeddings below; None where none must."""
        return None if self.last_blocks is None else depth - self.last_blocks


def require_one_limit(adapt: str, freeze_blocks: int) -> None:
    """Refuse two settings that both say what is not trained."""
    require(
        not freeze_blocks or adapt == "all",
        f'freeze_blocks ({freeze_blocks}) and adapt ("{adapt}") both say what stays as it is; leave one of them out',
    )

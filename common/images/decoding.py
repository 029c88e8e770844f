"""How an image is decoded: the one value that travels from a user's settings to the decoder, and into every record.

No library is imported here, so that settings are checked at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Final, Literal, Protocol

from beit.common.errors import InputError
from beit.common.images.ranges import DTYPE, RangeSetting, ValueRange

MAX_IMAGE_BYTES = 256 << 20
"""Largest encoded image that is read into memory. Arbitrary; a 64-megapixel 16-bit PNG stays below it."""
MAX_PIXELS = 64_000_000
"""Largest width x height that is decoded by default."""
MAX_SIDE_PX = 65535
"""View records hold box coordinates as unsigned 16-bit integers."""
Channels = str | tuple[int, ...]
"""Which channels become those of the image: "rgb", "grey", or numbers of bands, counted from 1 as GDAL counts them:
three for red, green and blue, or one for grey."""
GREY: Final = 1
RGB: Final = 3
"""Channels of a decoded image, and of what a model sees."""
Alpha = Literal["drop", "white", "black", "checker"]
"""What lies behind transparent pixels; "drop" shows the colours that they hide."""
Frame = str | int
"""Of what has several pages, slices or moments: "first", "middle", a number from 0 on, or "each"."""


class DecodingSettings(Protocol):
    """Settings that say how images are decoded, under the names that users give them."""

    @property
    def max_megapixels(self) -> float:
        """Largest image."""

    @property
    def range(self) -> RangeSetting | None:
        """See `ValueRange`; None, as below, is the default."""

    @property
    def channels(self) -> int | Channels | None:
        """See there."""

    @property
    def alpha(self) -> str | None:
        """See `Alpha`."""

    @property
    def frame(self) -> Frame | None:
        """See there."""


DEFAULTS: dict[str, Any] = {"range": DTYPE, "channels": "rgb", "alpha": "drop", "frame": "first"}
"""What settings say of how beit always decoded, but for the size of images."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How images become 8-bit pixels; by default, as beit always did."""

    max_pixels: int = MAX_PIXELS
    """Largest width x height that is decoded."""
    value_range: ValueRange = field(default_factory=ValueRange)
    """Which values become black and white."""
    channels: Channels = "rgb"
    """See `Channels`."""
    alpha: Alpha = "drop"
    """See `Alpha`."""
    frame: Frame = "first"
    """See `Frame`."""

    @property
    def is_usual(self) -> bool:
        """Whether it is the default, but for the size of images that are admitted."""
        # Asked for every image, of which small ones take a tenth of a millisecond.
        return (self.value_range, self.channels, self.alpha, self.frame) == _USUAL_PARTS

    @property
    def num_channels(self) -> int:
        """Channels of every image that is decoded so: 1 where it is grey, else 3."""
        return GREY if self.channels == "grey" or len(self.channels) == 1 else RGB

    @property
    def leaves_jpeg(self) -> bool:
        """Whether an ordinary JPEG, 8 bits of RGB or grey, becomes the pixels that it is by default, or their luma."""
        return self.channels in ("rgb", "grey") and not self.value_range.needs_values

    def of_any_size(self) -> Decoding:
        """Return the same with the usual limit of size, which says nothing of the pixels."""
        return replace(self, max_pixels=MAX_PIXELS)

    def of_packed(self) -> Decoding:
        """Return how images are decoded that were decoded so and stored as 8 bits again."""
        return Decoding(max_pixels=self.max_pixels, channels="grey" if self.num_channels == GREY else "rgb")

    def unusual(self) -> str:
        """Name the settings that are not as usual and what they do to values, behind "decoded with"; else nothing."""
        settings = {name: self.setting(name) for name, usual in DEFAULTS.items() if self.setting(name) != usual}
        listed = ", ".join(f"{name} {_plain(value)}" for name, value in settings.items())
        bounds = self.value_range
        if bounds.low is None:
            return listed
        ends = f"values from {bounds.low:.17g} to {bounds.high:.17g} become 0 to 255, what lies outside is clipped"
        return f"{listed}: {ends}"

    def in_words(self) -> str:
        """Say in one sentence how image files become pixels, where that is not as usual; else return nothing."""
        unusual = self.unusual()
        return f"Its images were decoded with {unusual}" if unusual else ""

    def identity(self) -> str:
        """Return what goes into the hash of what is decoded so; of a size alone, as ever."""
        return f"max_pixels {self.max_pixels}" if self.is_usual else json.dumps(self.as_json(), sort_keys=True)

    def as_json(self) -> dict[str, Any]:
        """Return plain values of what is not the default, under the names of settings; `from_json` reads them."""
        usual, found = Decoding(), self.value_range.found
        values: dict[str, Any] = {
            "max_megapixels": None if self.max_pixels == usual.max_pixels else self.max_pixels / 1e6,
            "range": None if self.value_range == usual.value_range else _plain(self.value_range.setting),
            "range_found": None if found is None else list(found),
            "channels": None if self.channels == usual.channels else _plain(self.channels),
            "alpha": None if self.alpha == usual.alpha else self.alpha,
            "frame": None if self.frame == usual.frame else self.frame,
        }
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Decoding:
        """Return what `as_json` wrote; what it left out is the default."""
        known = {"max_megapixels", "range", "range_found", "channels", "alpha", "frame"}
        try:
            settings = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            if not settings.keys() <= known:
                raise InputError(f"it has the unknown {', '.join(sorted(settings.keys() - known))}")
            found = settings.pop("range_found", None)
            return cls.of_settings(
                SimpleNamespace(**DEFAULTS | {"max_megapixels": MAX_PIXELS / 1e6} | settings), found=found
            )
        except (InputError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{values!r:.200} does not say how images are decoded: {error}") from None

    @classmethod
    def of_settings(cls, settings: DecodingSettings, *, found: tuple[float, float] | None = None) -> Decoding:
        """Return what settings ask for; `found` are the values that percentiles were found to be."""
        return cls(
            max_pixels=round(settings.max_megapixels * 1e6),
            value_range=ValueRange() if settings.range is None else ValueRange.parse(settings.range, found),
            channels="rgb" if settings.channels is None else parse_channels(settings.channels),
            alpha="drop" if settings.alpha is None else parse_alpha(settings.alpha),
            frame="first" if settings.frame is None else parse_frame(settings.frame),
        )

    def unlike(self, other: Decoding) -> tuple[dict[str, str], dict[str, str]]:
        """Return what of two ways to decode is not the same, but for the size of images: of this one and the other.

        Percentiles are compared by the values that they were found to be.
        """
        own, others = ({name: one._in_force(name) for name in DEFAULTS} for one in (self, other))
        differing = [name for name in DEFAULTS if own[name] != others[name]]
        return {name: own[name] for name in differing}, {name: others[name] for name in differing}

    def _in_force(self, name: str) -> str:
        found = self.value_range.found if name == "range" else None
        return str(_plain(self.setting(name) if found is None else tuple(found)))

    def setting(self, name: str) -> Any:
        """Return what a user would give for one of `DEFAULTS`."""
        return self.value_range.setting if name == "range" else getattr(self, name)


USUAL = Decoding()
"""As beit always decoded."""
_USUAL_PARTS = (USUAL.value_range, USUAL.channels, USUAL.alpha, USUAL.frame)


def parse_channels(setting: Any) -> Channels:
    """Check a setting of channels."""
    bands = (setting,) if type(setting) is int else setting
    are_numbers = isinstance(bands, tuple) and all(type(band) is int for band in bands)
    if bands not in ("rgb", "grey") and not (are_numbers and len(bands) in (GREY, RGB) and min(bands) >= 1):
        shown = list(setting) if isinstance(setting, tuple) else setting
        why = " (there is no band 0)" if are_numbers and 0 in bands else ""
        raise InputError(
            f'source.channels ({shown}) must be "rgb", "grey", or numbers of bands, counted from 1{why}: three such as '
            "[4, 3, 2] for red, green and blue, or one such as [1] for grey"
        )
    return bands  # type: ignore[no-any-return]


def parse_alpha(setting: Any) -> Alpha:
    """Check a setting of what lies behind transparent pixels."""
    if setting not in ("drop", "white", "black", "checker"):
        raise InputError(f'source.alpha ({setting}) must be "drop", "white", "black" or "checker"')
    return setting  # type: ignore[no-any-return]


def parse_frame(setting: Any) -> Frame:
    """Check a setting of frames."""
    is_number = type(setting) is int and setting >= 0
    if setting not in ("first", "middle", "each") and not is_number:
        raise InputError(f'source.frame ({setting}) must be "first", "middle", "each", or a number from 0 on such as 2')
    return setting  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

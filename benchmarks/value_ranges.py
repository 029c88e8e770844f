"""What 8 bits keep of a deep image, by `source.range`: levels, error, and how far a faint structure stands out.

    python benchmarks/value_ranges.py

The image is drawn, so that everything is known of it: 12 bits in a 16-bit PNG as cameras and detectors write them, a
smooth background around 600 of 4095 with noise of 4, discs that are 8 brighter, and a few saturated pixels. The table
is printed as docs/images.md shows it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.images.decode import decode_image
from beit.common.images.decoding import Decoding
from beit.common.images.depth import find_range
from beit.common.images.ranges import RangeSetting, ValueRange

SETTINGS: tuple[RangeSetting, ...] = ("dtype", (0.0, 4095.0), (0.0, 1023.0), "percentile:0.5,99.5")
_SIDE_PX, _RADIUS_PX, _DISCS = 512, 20, 8
_STEP, _NOISE = 8.0, 4.0


def drawn_scan() -> tuple[NDArray[np.uint16], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the image, uint16 (H, W), where discs are, and the rings around them, bool (H, W)."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:_SIDE_PX, :_SIDE_PX]
    spacing = _SIDE_PX // _DISCS
    away = np.hypot(rows % spacing - spacing / 2, columns % spacing - spacing / 2)
    discs = away < _RADIUS_PX
    values = 600 + 150 * np.sin(rows / 160) * np.cos(columns / 120) + _STEP * discs
    values += rng.normal(0, _NOISE, discs.shape)
    values[rng.random(discs.shape) < 1e-4] = 4095
    return values.round().clip(0, 4095).astype(np.uint16), discs, ~discs & (away < 1.4 * _RADIUS_PX)


def measured() -> Iterator[tuple[str, int, float, float]]:
    """Yield for each setting what it is, its grey levels, the error in values, and how far discs stand out in levels.

    The error is that of what lies within the range, whose ends are clipped.
    """
    values, discs, rings = drawn_scan()
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    data = buffer.getvalue()
    for setting in SETTINGS:
        decoding = Decoding(value_range=ValueRange.parse(setting))
        if not decoding.value_range.is_resolved:
            decoding = find_range([("scan.png", lambda: data)], decoding, of="the scan")
        pixels = np.asarray(decode_image(data, decoding))[..., 0]
        low, high = decoding.value_range.low, decoding.value_range.high
        low, high = (0.0, 65535.0) if low is None or high is None else (low, high)
        inside = (values >= low) & (values <= high)
        error = pixels[inside] / 255 * (high - low) + low - values[inside]
        contrast = pixels[discs].mean() - pixels[rings].mean()
        yield str(decoding.value_range), len(np.unique(pixels)), float(np.sqrt((error**2).mean())), float(contrast)


def main() -> None:
    """Print the table."""
    print("| `source.range` | grey levels | error (rms, in values) | discs above their surroundings (grey levels) |")
    print("|---|---:|---:|---:|")
    for name, levels, error, contrast in measured():
        print(f"| `{name}` | {levels} | {error:.1f} | {contrast:.2f} |")


if __name__ == "__main__":
    main()

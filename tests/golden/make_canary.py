"""Make common/canary.jpg, the image whose rendered views tell whether two machines agree. Run once; the result is kept.

    python tests/golden/make_canary.py common/canary.jpg

A new file changes every stored canary, so tokenised stores would be refused: do not run it again without need.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def make_canary() -> Image.Image:
    """Draw gradients, hard edges and noise of 83 x 131 px: each exposes another part of a decoder or resampler."""
    rows, columns = np.mgrid[0:131, 0:83].astype(np.float64)
    red = 127 + 120 * np.sin(columns / 5 + rows / 17)
    green = 255 * ((rows // 9 + columns // 7) % 2)
    blue = np.random.default_rng(20210615).uniform(0, 255, rows.shape)
    blue[:, :40] = (rows * 2 % 256)[:, :40]
    pixels = np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def main(path: Path) -> None:
    """Save with 4:2:0 chroma and EXIF orientation 6 (turned by 90 degrees)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    make_canary().save(path, "JPEG", quality=87, subsampling="4:2:0", exif=exif)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Make tests/golden/rand_augment.json: what timm's RandAugment operations do to one image.

    pip install --no-deps --target FOLDER timm==1.0.31
    python tests/golden/make_rand_augment.py FOLDER tests/golden/rand_augment.json

Only `timm/data/auto_augment.py` is loaded, which needs nothing but Pillow and NumPy.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

LEVELS = (3.3, 9.0)
FILL = (124, 116, 104)
ROWS, COLUMNS = slice(5, 64, 13), slice(7, 96, 17)
"""The pixels that are kept."""


def golden_image() -> Image.Image:
    """Draw gradients, edges and texture of 96 x 64 px."""
    rows, columns = np.mgrid[0:64, 0:96]
    red, green = 20 + 2 * columns, 40 + 120 * ((rows // 9 + columns // 7) % 2)
    blue = (rows * 37 + columns * 11) % 200
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def kept(pixels: Any) -> list[Any]:
    """Reduce a result to a raster of its pixels and the sum of all."""
    array = np.asarray(pixels).astype(int)
    return [array[ROWS, COLUMNS].tolist(), int(array.sum())]


def apply(timm: ModuleType, name: str, level: float, sign: int) -> list[Any]:
    """Apply timm's operation with a fixed sign."""
    operation = timm.AugmentOp(
        name, prob=1.0, magnitude=level, hparams={"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    )
    timm.random.random = lambda: 0.9 if sign < 0 else 0.1
    return kept(operation(golden_image()))


def main(folder: Path, out: Path) -> None:
    """Load timm's file, apply every operation and write the results."""
    spec = importlib.util.spec_from_file_location("auto_augment", folder / "timm/data/auto_augment.py")
    assert spec is not None and spec.loader is not None
    timm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(timm)
    names = timm._RAND_INCREASING_TRANSFORMS
    results = [
        [name, level, sign, *apply(timm, name, level, sign)] for name in names for level in LEVELS for sign in (1, -1)
    ]
    out.write_text("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in results) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

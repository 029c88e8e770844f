"""Make tests/golden/coco_regions.json: what pixels pycocotools says that polygons cover.

pip install --target FOLDER pycocotools==2.0.11
PYTHONPATH=FOLDER python tests/golden/make_coco_regions.py tests/golden/coco_regions.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

DRAWN_BY_HAND: list[list[list[float]]] = [
    [[10, 10, 30, 10, 20, 30]],
    [[10.5, 10.5, 30.5, 11.2, 20.1, 30.9]],
    [[5, 5, 35, 5, 35, 25, 5, 25], [12, 10, 28, 10, 28, 20, 12, 20]],
    [[0, 0, 20, 0, 20, 30, 0, 30], [20, 0, 40, 0, 40, 30, 20, 30]],
    [[-10, -10, 60, -5, 50, 50, -20, 40]],
    [[3, 3, 3, 3, 10, 3, 10, 3, 10, 10]],
    [[5.2, 5, 5.4, 25, 5.6, 5]],
    [[0, 15, 40, 15, 0, 16]],
    [[20, 2, 26, 28, 8, 10, 34, 10, 12, 28]],
]


def cases() -> list[tuple[list[list[float]], int, int]]:
    """Return polygons with height and width: hard ones, and random ones of the kinds that people draw."""
    rng = np.random.default_rng(20260701)
    found = [(polygons, 30, 40) for polygons in DRAWN_BY_HAND]
    for number in range(60):
        height, width = (int(side) for side in rng.integers(1, 90, 2))
        polygons = []
        for _ in range(int(rng.integers(1, 4))):
            corners = int(rng.integers(3, 30))
            if number % 3 == 0:
                points = rng.uniform(-30, 120, (corners, 2))
            elif number % 3 == 1:
                points = rng.integers(-20, 180, (corners, 2)) / 2
            else:
                angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
                radius = rng.uniform(2, 50) * (1 + 0.2 * rng.normal(size=corners))
                points = np.stack([width / 2 + radius * np.cos(angles), height / 2 + radius * np.sin(angles)], axis=1)
            polygons.append(points.round(2).reshape(-1).tolist())
        found.append((polygons, height, width))
    return found


def main(path: Path) -> None:
    """Write polygons, size, and COCO's text of the run lengths."""
    lines: list[dict[str, Any]] = []
    for polygons, height, width in cases():
        runs = coco.merge(coco.frPyObjects(polygons, height, width))
        lines.append({"polygons": polygons, "size": [height, width], "counts": runs["counts"].decode()})
    path.write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

#!/usr/bin/env bash
# torch 2.13.0: `interpolate(mode="bicubic", antialias=True)` gives other values than `antialias=False` also where the
# picture grows, although there is nothing to filter then.
#
# Expected: the same values when enlarging, as mode "bilinear" gives.
# Seen: they differ, because the two paths use different cubics (coefficient -0.5 with antialias, -0.75 without). Position
# embeddings of a ViT that one library resizes with antialias and another without differ at higher resolutions, too.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.functional import interpolate


def cubic(distance: float, coefficient: float) -> float:
    if distance < 1:
        return (coefficient + 2) * distance**3 - (coefficient + 3) * distance**2 + 1
    return coefficient * (distance**3 - 5 * distance**2 + 8 * distance - 4)


impulse = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
impulse[..., 4] = 1.0  # enlarged twice, pixel 9 lies 0.25 beside it
found = {}
for mode in ("bilinear", "bicubic"):
    rows = [interpolate(impulse, size=(1, 16), mode=mode, antialias=antialias)[0, 0, 0] for antialias in (False, True)]
    found[mode] = [row[9].item() for row in rows]
    print(mode, "weight at 0.25 px, without and with antialias:", found[mode])
expected = [cubic(0.25, -0.75), cubic(0.25, -0.5)]
print("cubic of -0.75 and of -0.5:", expected)
close = all(abs(a - b) < 1e-9 for a, b in zip(found["bicubic"], expected))
sys.exit(not (close and found["bilinear"][0] == found["bilinear"][1]))
PYTHON

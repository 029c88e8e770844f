#!/usr/bin/env bash
# transformers 5.24.0 and 4.57.1: once a BeitModel with relative positions has run inside `torch.inference_mode()`, none
# with the same grid of patches can be trained in that process: neither that one (both versions) nor, in 5.24.0, any other.
#
# Expected: what a model has computed under inference mode has no bearing on a later forward pass outside it.
# Seen: "Inference tensors cannot be saved for backward" in that forward pass. The index of relative positions is kept in
# an `lru_cache` (BeitRelativePositionBias.generate_relative_position_index); made under inference mode, it is an inference
# tensor for good, and indexing the trained table with it wants to save it for the backward pass. 4.57.1 keeps one per
# module, since `self` is part of the key; 5.24.0 one per grid. Another grid is fine, and so is the first pass under
# `torch.no_grad()` or with gradients.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import BeitConfig, BeitModel


def model(side):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, patch_size=4)
    return BeitModel(BeitConfig(image_size=side, use_relative_position_bias=True, **sizes))


def train(beit, side):
    try:
        beit(torch.ones(1, 3, side, side)).last_hidden_state.sum().backward()
    except RuntimeError as error:
        return str(error).split(".")[0]
    return "trains"


used, unused = model(16), model(16)
with torch.inference_mode():
    used(torch.ones(1, 3, 16, 16))
seen = {"the same model": train(used, 16), "another model": train(unused, 16), "another grid": train(model(24), 24)}

without = model(32)
with torch.no_grad():
    without(torch.ones(1, 3, 32, 32))
seen["first under no_grad"] = train(without, 32)

refused = "Inference tensors cannot be saved for backward"
others = refused if transformers.__version__.startswith("5.") else "trains"
print(transformers.__version__, seen)
sys.exit(list(seen.values()) != [refused, others, "trains", "trains"])
PYTHON
for version in 5.24.0 4.57.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check \
        torch==2.13.0 numpy==2.4.2 transformers=="$version" 2>/dev/null
    "$folder/$version/bin/python" "$folder/look.py"
done

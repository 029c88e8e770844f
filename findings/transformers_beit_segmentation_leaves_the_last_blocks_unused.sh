#!/usr/bin/env bash
# transformers 5.23.0 and 4.57.1: BeitForSemanticSegmentation with out_indices [3, 5, 7, 11], what its own message
# recommends for a base model and the released BEiT segmentation models have, computes its last two blocks for nothing.
#
# Expected: as in the released code (mmsegmentation), whose out_indices count blocks from 0, so that 3, 5, 7 and 11 are
# the outputs of the 4th, 6th, 8th and last block of twelve.
# Seen: out_indices count hidden states from 1, and the first of those is the patch embedding. So the pyramid is built from
# the 2nd, 4th, 6th and 10th block; the 11th and 12th may be set to noise and no logit changes. The output of the last
# block cannot be had: that would be index 13, which the configuration refuses. Weights of the released code, under the
# same names and numbers, therefore give another segmentation.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import BeitConfig, BeitForSemanticSegmentation

small = dict(hidden_size=32, num_attention_heads=2, intermediate_size=64, image_size=64, pool_scales=[1, 2, 3, 6])
config = BeitConfig(num_hidden_layers=12, layer_scale_init_value=1.0, use_relative_position_bias=True, out_indices=[3, 5, 7, 11], **small)
torch.manual_seed(0)
model = BeitForSemanticSegmentation(config).eval()
images = torch.randn(2, 3, 64, 64)


def logits():
    with torch.inference_mode():
        return model(images).logits


before, unused = logits(), []
blocks = next(module for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 12)
for number in reversed(range(12)):
    with torch.no_grad():
        for parameter in blocks[number].parameters():
            parameter.normal_()
    if not torch.equal(logits(), before):
        break
    unused.append(number + 1)
try:
    other = BeitConfig(num_hidden_layers=12, out_indices=[4, 6, 8, 13], **small)
    BeitForSemanticSegmentation(other)
    thirteen = "taken"
except Exception as error:
    thirteen = f"refused ({type(error).__name__})"
print(transformers.__version__, "out_indices", list(config.out_indices), "blocks without influence:", sorted(unused))
print("index 13:", thirteen)
sys.exit(not (list(config.out_indices) == [3, 5, 7, 11] and sorted(unused) == [11, 12] and thirteen != "taken"))
PYTHON
for version in 5.23.0 4.57.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check \
        torch==2.13.0 numpy==2.4.2 transformers=="$version" 2>/dev/null
    "$folder/$version/bin/python" "$folder/look.py"
done

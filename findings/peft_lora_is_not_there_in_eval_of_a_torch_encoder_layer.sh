#!/usr/bin/env bash
# peft 0.21.2 with torch 2.13.0 (CPU): a low-rank adapter on the linear layers of torch's own TransformerEncoderLayer is
# part of the model in training and not in eval mode, without a word.
#
# Expected: what an adapter has learned counts in both modes; `model.eval()` changes dropout only, of which there is none.
# Seen: in eval mode the layer takes its fused path, which reads `linear1.weight` and `linear2.weight` itself. peft's layer
# answers to `.weight` with the weight of the base, so the fused path runs with the base alone: the output is that of the
# model without adapter, with and without gradients. Merged (`merge()` of each layer), or with the fused path switched off
# (torch.backends.mha.set_fastpath_enabled(False)), it is that of training. The same holds for any code that hands
# `layer.weight` to a function instead of calling the layer, in both modes, so that there the adapter gets no gradient.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.2 peft==0.21.2 accelerate==1.15.0 transformers==5.23.0 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, inject_adapter_in_model

torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
inputs = torch.randn(2, 5, 32)
base = layer.train()(inputs).detach()
config = LoraConfig(r=4, target_modules=["linear1", "linear2"], init_lora_weights=False)  # as if it had learned
model = inject_adapter_in_model(config, layer)


def change(name):
    with torch.no_grad():
        difference = (model(inputs) - base).abs().max().item()
    print(f"{name}: differs from the model without adapter by {difference:.1e}")
    return difference > 0.01


in_training = change("train()") if model.train() else None
in_eval = change("eval()") if not model.eval().training else None
torch.backends.mha.set_fastpath_enabled(False)
without_fused = change("eval(), fused path off")
torch.backends.mha.set_fastpath_enabled(True)
model.linear1.merge()
model.linear2.merge()
merged = change("eval(), merged")
sys.exit(not (in_training and not in_eval and without_fused and merged))
PYTHON

#!/usr/bin/env bash
# transformers 5.23.0: a ViTMAEForPreTraining made from a configuration has zeros where MAE's fixed sine and cosine
# positions belong, in encoder and decoder. They are no trained parameters, so a model trained from scratch never learns
# where a patch is; the decoder cannot tell one masked patch from another.
#
# Expected: the positions of the paper, as `ViTMAEDecoder.initialize_weights` computes them.
# Seen: zeros in both. `_init_weights` zeroes the decoder's after they were filled; the encoder's are not filled, because
# its patch projection, initialised before it, is flagged as done.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from transformers import ViTMAEConfig, ViTMAEForPreTraining

sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
sizes |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
model = ViTMAEForPreTraining(ViTMAEConfig(**sizes))
tables = {"encoder": model.vit.embeddings.position_embeddings, "decoder": model.decoder.decoder_pos_embed}
for name, table in tables.items():
    print(f"{name}: requires_grad {table.requires_grad}, largest value {table.abs().max().item()}")
sys.exit(any(table.abs().max() > 0 for table in tables.values()))
PYTHON

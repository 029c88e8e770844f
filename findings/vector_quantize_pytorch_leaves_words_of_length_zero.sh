#!/usr/bin/env bash
# vector-quantize-pytorch 1.32.0 with torch 2.13.0 (CPU): with use_cosine_sim=True words of the codebook come to be zero,
# after a k-means start and, without one, where nobody chooses them for some thousand steps. All defaults otherwise.
#
# Expected: with cosine similarity every word is a direction, a vector of length 1, whether or not it is chosen.
# Seen: (1) kmeans_init=True: a cluster that is empty in the last round keeps its centre, but the running sum is made as
# centre x size = 0, and the codebook is made of that: the word is the zero vector. Its similarity to everything is 0, so it
# is chosen by vectors that all other words point away from, and it never moves otherwise (threshold_ema_dead_code is 0).
# (2) A word that is not chosen: its running sum and its count shrink by `decay` each step, the count is smoothed by
# eps = 1e-5, so that their quotient goes to 0, and from below 1e-6 on the normalisation no longer makes it 1 again.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.2 vector-quantize-pytorch==1.32.0 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

torch.manual_seed(0)
centres = torch.randn(100, 32)
data = (centres[torch.randint(100, (4000,))] + 0.2 * torch.randn(4000, 32))[None]
started = VectorQuantize(dim=32, codebook_size=256, use_cosine_sim=True, kmeans_init=True).train()
started(data)
empty = int((started.codebook.norm(dim=1) < 0.5).sum())
print("words of length 0 after the k-means start:", empty, "of 256")

unused = VectorQuantize(dim=8, codebook_size=64, use_cosine_sim=True, decay=0.99).train()
one = F.normalize(torch.ones(1, 10, 8), dim=-1)
lengths = []
for step in range(4001):
    unused(one)
    if step % 1000 == 0:
        lengths.append(float(unused.codebook.norm(dim=1).min()))
print("length of the shortest word after 0, 1000, ... steps:", [round(length, 4) for length in lengths])
sys.exit(not (empty > 0 and lengths[0] > 0.99 and lengths[-1] < 0.01))
PYTHON

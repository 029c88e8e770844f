#!/usr/bin/env bash
# webdataset 1.0.2: `wds.batched(n)` hands a full batch on only when the sample after it has been read.
#
# Expected: with batches of two, the first batch comes after two samples of the source.
# Seen: it comes after three; a batch waits for a sample that is not in it. Where samples come slowly (a server, a camera,
# a sensor), a complete batch lies there until the next one starts, and the source is always one sample further than what
# was handed on, which matters to whoever saves the source's position after each batch.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import webdataset as wds

read = []


def source():
    for number in range(5):
        read.append(number)
        yield {"number": number}


seen = []
for batch in wds.batched(2)(source()):
    seen.append((batch["number"].tolist() if hasattr(batch["number"], "tolist") else list(batch["number"]), len(read)))
print("batch, samples read by then:", seen)
sys.exit(seen != [([0, 1], 3), ([2, 3], 5), ([4], 5)])
PYTHON

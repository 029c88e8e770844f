#!/usr/bin/env bash
# pyarrow 26.0.1: casting a `list_view` array to `list` gives an array that is not valid, without an error.
#
# Expected: the same lists in the other layout, or ArrowNotImplementedError.
# Seen: `cast` returns; `validate(full=True)` of the result says that its offsets are too short, and of a slice that they
# are not in order. Whoever does not validate works with other values than those that went in.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import pyarrow as pa

views = pa.array([[1, 2], [3], None], pa.list_view(pa.int64()))
views.validate(full=True)
found = []
for name, array in (("whole", views), ("slice", views.slice(1))):
    try:
        result = array.cast(pa.list_(pa.int64()))
    except pa.ArrowException as error:
        found.append(f"{name}: cast refused, {type(error).__name__}")
        continue
    try:
        result.validate(full=True)
    except pa.ArrowInvalid as error:
        found.append(f"{name}: cast returned, not valid ({str(error).split(':')[0]})")
    else:
        found.append(f"{name}: cast returned {result.to_pylist()}")
print("\n".join(found))
sys.exit(not all("cast returned, not valid" in line for line in found))
PYTHON

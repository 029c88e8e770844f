#!/usr/bin/env bash
# pyarrow 26.0.1: a struct with a `binary_view` or `string_view` field, the shape of an image column of Hugging Face, can be
# written to Parquet in one row group and not in several.
#
# Expected: `row_group_size` decides how the rows are divided, and nothing else.
# Seen: ArrowNotImplementedError "Slicing not implemented for BinaryView" as soon as a table has more rows than one group;
# the same column outside a struct is written. So a program that keeps views writes small samples and fails on the data.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq

view = pa.binary_view()
columns = {
    "alone": pa.array([b"image"] * 4, view),
    "in a struct": pa.array([{"bytes": b"image"}] * 4, pa.struct([("bytes", view)])),
}
found = {}
for name, column in columns.items():
    for rows in (4, 2):
        try:
            pq.write_table(pa.table({"image": column}), io.BytesIO(), row_group_size=rows)
        except pa.ArrowNotImplementedError as error:
            found[name, rows] = str(error)
        else:
            found[name, rows] = "written"
        print(f"{name}, {rows} of 4 rows per group: {found[name, rows]}")
refused = found.pop(("in a struct", 2))
sys.exit(not ("Slicing not implemented" in refused and set(found.values()) == {"written"}))
PYTHON

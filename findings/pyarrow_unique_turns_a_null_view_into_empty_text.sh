#!/usr/bin/env bash
# pyarrow 26.0.1: `compute.unique` and `compute.value_counts` turn a null of a `string_view` or `binary_view` column into an
# empty text. Files written by polars, DataFusion and arrow-rs have such columns.
#
# Expected: the values a, b and null, as `string` and `large_string` give, and as `dictionary_encode` gives for the views.
# Seen: a, b and "", so that a table's missing labels become one more class, called by an empty name.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.compute as pc

labels = ["a", "b", None]
plain, view = pa.array(labels, pa.string()), pa.array(labels, pa.string_view())
counts = [entry["values"].as_py() for entry in pc.value_counts(view)]
print("nulls in the view:", view.null_count)
print("unique of string:", pc.unique(plain).to_pylist())
print("unique of string_view:", pc.unique(view).to_pylist())
print("value_counts of string_view:", counts)
print("dictionary_encode of string_view:", view.dictionary_encode().to_pylist())
wrong = ["a", "b", ""]
sys.exit(not (pc.unique(plain).to_pylist() == labels and pc.unique(view).to_pylist() == wrong and counts == wrong))
PYTHON

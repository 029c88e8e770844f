"""Tables of predictions: the same rows in every format, and nothing half-written."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest

from beit.common.errors import InputError
from beit.finetune.prediction.files import Prediction, check_prediction_file, write_csv_text, write_predictions

ROWS = [
    Prediction(key="ä/1.png", labels=("a", "b"), probabilities=(0.75, 0.25), predicted=("a",), features=(0.5, -1.0)),
    Prediction(key="2.png", labels=("b", "a"), probabilities=(0.5, 0.5), predicted=("a", "b"), features=(1.5, 2.0)),
    Prediction(key="3.png", labels=("b", "a"), probabilities=(0.4, 0.3), predicted=(), features=(0.0, 0.0)),
]
BATCHES = [ROWS[:2], ROWS[2:]]


def test_csv(tmp_path):
    write_predictions(BATCHES, tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8")))
    assert rows[0] == {
        "key": "ä/1.png",
        "label": "a",
        "probability": "0.750000",
        "label_2": "b",
        "probability_2": "0.250000",
        "predicted": "a",
        "feature_0": "0.5",
        "feature_1": "-1",
    }
    assert [row["predicted"] for row in rows] == ["a", "a|b", ""]
    stream = io.StringIO()
    write_csv_text(BATCHES, stream)
    assert stream.getvalue() == (tmp_path / "p.csv").read_text(encoding="utf-8")


def test_json_lines(tmp_path):
    write_predictions(BATCHES, tmp_path / "p.JSONL")
    rows = [json.loads(line) for line in (tmp_path / "p.JSONL").read_text(encoding="utf-8").splitlines()]
    assert rows[1] == {
        "key": "2.png",
        "label": "b",
        "probability": 0.5,
        "labels": ["b", "a"],
        "probabilities": [0.5, 0.5],
        "predicted": ["a", "b"],
        "features": [1.5, 2.0],
    }
    assert len(rows) == 3


def test_parquet(tmp_path):
    write_predictions(BATCHES, tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    assert table["key"].to_pylist() == ["ä/1.png", "2.png", "3.png"]
    assert table["labels"].to_pylist()[0] == ["a", "b"]
    assert table["predicted"].to_pylist() == [["a"], ["a", "b"], []]
    assert table["features"].to_pylist()[0] == [0.5, -1.0]


def test_only_what_there_is_becomes_a_column(tmp_path):
    for suffix in (".csv", ".parquet", ".jsonl"):
        write_predictions([[Prediction(key="a", features=(1.0,))]], tmp_path / f"p{suffix}")
    assert pq.read_table(tmp_path / "p.parquet").column_names == ["key", "features"]
    assert (tmp_path / "p.csv").read_text() == "key,feature_0\na,1\n"
    assert json.loads((tmp_path / "p.jsonl").read_text()) == {"key": "a", "features": [1.0]}


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_file_of_a_failed_prediction_does_not_appear(tmp_path, suffix):
    def failing():
        yield ROWS[:1]
        raise InputError("gone")

    with pytest.raises(InputError, match="gone"):
        write_predictions(failing(), tmp_path / f"p{suffix}")
    assert not list(tmp_path.iterdir())


def test_other_endings_are_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"labels\.xlsx must end in \.csv, \.parquet, \.jsonl"):
        check_prediction_file(tmp_path / "labels.xlsx")

"""Images of several classes, from the labels to evaluation and prediction."""

import json

import pytest

from beit.common.errors import InputError
from beit.common.runs.metrics import read_metrics
from beit.common.vit.description import read_encoder_config
from beit.finetune.evaluation.evaluate import evaluate_model
from beit.finetune.prediction.predict import predict
from beit.finetune.train import run
from beit.tests.unit.finetune.colours import finetune_config, write_images

LABELS = {"blue": "cold", "red": "warm|loud", "green": ""}


def write_table(root, count, start=0):
    write_images(root / "images", tuple(LABELS), count, start=start)
    rows = [f"images/{name}/{number}.png,{LABELS[name]}" for name in LABELS for number in range(start, start + count)]
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return str(root / "labels.csv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("multi")
    train, val = write_table(root / "train", 12), write_table(root / "val", 5, start=50)
    settings = ("classifier.multi_label=true", "classifier.label_smoothing=0.0", "optimizer.lr=3e-2")
    steps = ("train.steps=40", "train.eval_interval_steps=20", f"data.val={val}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEIT_CACHE", str(root / "cache"))
        run(finetune_config(*settings, *steps), data=train, run_dir=root / "run")
    return root / "run", val


def test_the_best_model_is_that_of_the_best_map(trained):
    path, _ = trained
    records = [record for record in read_metrics(path / "metrics.jsonl") if "val_map" in record]
    assert [record["step"] for record in records] == [20, 40]
    stored = read_encoder_config(path / "model")
    assert stored.multi_label
    assert stored.class_names == ("cold", "loud", "warm")
    assert stored.provenance["metrics"]["map"] == max(record["val_map"] for record in records) > 0.9


def test_evaluation_and_prediction_agree(trained, tmp_path):
    path, val = trained
    report = evaluate_model(path, val, out=tmp_path / "e.json", html=tmp_path / "e.html")
    (batch,) = predict(path, val)
    truth = {name: set(filter(None, label.split("|"))) for name, label in LABELS.items()}
    hits = [set(row.predicted) == truth[row.key.split("/")[1]] for row in batch]
    wrong = {mistake.name for mistake in report.mistakes}
    assert [row.key not in wrong for row in batch] == hits
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["map"] == read_encoder_config(path / "model").provenance["metrics"]["map"]
    assert found["confusion"] is None
    assert all(score["average_precision"] is not None for score in found["per_class"])
    assert "mAP" in report.as_table()
    assert "average precision" in (tmp_path / "e.html").read_text()


def test_classes_the_model_does_not_know_are_one_clear_line(trained, tmp_path):
    path, _ = trained
    write_images(tmp_path / "images", ("red",), 1)
    (tmp_path / "l.csv").write_text("path,label\nimages/red/0.png,warm|odd\n")
    with pytest.raises(InputError, match=r"does not know \(odd\)"):
        evaluate_model(path, str(tmp_path / "l.csv"))

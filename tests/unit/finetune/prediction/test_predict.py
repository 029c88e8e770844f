"""Predictions: one row per readable image, agreeing with the evaluation."""

import csv
import io

import pytest
import torch

from beit.common.encoder import read_encoder_state
from beit.common.errors import InputError
from beit.common.vit.description import read_encoder_config
from beit.finetune.artifact import load_classifier
from beit.finetune.evaluation.evaluate import evaluate_model
from beit.finetune.prediction.predict import predict, predict_to_file
from beit.tests.encoders import save_encoder
from beit.tests.image_files import write_tar
from beit.tests.unit.finetune.colours import write_images


def rows_of(model, source, out=None):
    stdout = io.StringIO()
    predict_to_file(model, str(source), out=out, stdout=stdout)
    text = stdout.getvalue() if out is None else out.read_text()
    return list(csv.DictReader(io.StringIO(text)))


def test_predictions_agree_with_the_evaluation(finished):
    rows = rows_of(finished.run / "model", finished.val)
    assert len(rows) == 20
    assert list(rows[0]) == ["key", "label", "probability", "label_2", "probability_2"]
    right = sum(row["key"].startswith(row["label"]) for row in rows)
    assert right / 20 == evaluate_model(finished.run, str(finished.val)).metrics.top1
    for row in rows:
        assert float(row["probability"]) >= float(row["probability_2"])
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=1e-5)
        assert {row["label"], row["label_2"]} == {"blue", "red"}


def test_keys_are_the_paths_in_the_folder(finished, tmp_path):
    write_images(tmp_path / "new", ("red", "blue"), 1)
    assert {row["key"] for row in rows_of(finished.run, tmp_path / "new")} == {"red/0.png", "blue/0.png"}


def test_tars_are_named_by_shard_and_key(finished, tmp_path):
    write_tar(tmp_path / "a.tar", [None, None])
    assert [row["key"] for row in rows_of(finished.run, tmp_path / "a.tar")] == ["a/0000", "a/0001"]


def test_unreadable_images_are_reported_and_left_out(finished, tmp_path, caplog):
    source = write_images(tmp_path / "new", ("red",), 3)
    (source / "red" / "1.png").write_bytes(b"no image")
    with caplog.at_level("WARNING", logger="beit"):
        rows = rows_of(finished.run, source, tmp_path / "out.csv")
    assert [row["key"] for row in rows] == ["red/0.png", "red/2.png"]
    assert "1 of 3 images skipped (1 unsupported)" in caplog.text


def test_source_without_any_readable_image_is_an_error_and_writes_nothing(finished, tmp_path):
    source = tmp_path / "new"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the 3 images"):
        rows_of(finished.run, source, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("source", ["nowhere", "empty"])
def test_bad_source_is_one_clear_line(finished, tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"does not exist|is empty"):
        rows_of(finished.run, tmp_path / source, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_single_image_is_a_source(finished):
    path = next((finished.val / "red").glob("*.png"))
    assert [row["label"] for row in rows_of(finished.run, path)] == ["red"]


def test_features_are_what_the_head_sees(finished):
    (batch,) = predict(finished.run / "model", str(finished.val), features=True)
    classifier, stored = load_classifier(finished.run / "model")
    assert len(batch[0].features) == stored.architecture.embed_dim
    logits = classifier.head(torch.tensor([row.features for row in batch]))
    best = [stored.class_names[class_id] for class_id in logits.argmax(1).tolist()]
    assert best == [row.labels[0] for row in batch]


def test_features_of_an_encoder_are_those_of_its_best_block(tmp_path, finished):
    state, stored = read_encoder_state(finished.run / "model"), read_encoder_config(finished.run / "model")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "fc_norm."))}
    last = stored.architecture.depth - 1
    found = {}
    for best_block in (None, 0, last):
        folder = tmp_path / f"encoder-{best_block}"
        save_encoder(
            folder,
            kept,
            architecture=stored.architecture,
            mean=[0.5] * 3,
            std=[0.5] * 3,
            provenance={},
            best_block=best_block,
        )
        (batch,) = predict(folder, str(finished.val), features=True)
        found[best_block] = [row.features for row in batch]
    assert found[None] == found[last] != found[0]


def test_an_encoder_without_classes_gives_features_only(tmp_path, finished):
    state, stored = read_encoder_state(finished.run / "model"), read_encoder_config(finished.run / "model")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "fc_norm."))}
    save_encoder(
        tmp_path / "encoder", kept, architecture=stored.architecture, mean=[0.5] * 3, std=[0.5] * 3, provenance={}
    )
    (batch,) = predict(tmp_path / "encoder", str(finished.val), features=True)
    assert len(batch) == 20
    assert batch[0].labels == ()
    assert len(batch[0].features) == stored.architecture.embed_dim
    with pytest.raises(InputError, match="without a classification head"):
        next(predict(tmp_path / "encoder", str(finished.val)))

"""Linear probe and k-NN as tasks: features once, the best block named, its model usable, nothing random."""

import json
import logging

import numpy as np
import pytest
import torch

from beit.common.errors import InputError
from beit.common.vit.description import read_encoder_config
from beit.finetune.evaluation.evaluate import evaluate_model
from beit.finetune.probe import features as probe_features
from beit.finetune.probe.run import knn_table, linear_scores, linear_table, run_probe
from beit.finetune.train import run
from beit.tests.unit.finetune.colours import finetune_config, noisy_png, write_images


def probe(task, finished, run, *overrides):
    config = finetune_config(f"data.val={finished.val}", f"encoder={finished.run / 'last'}", *overrides)
    table = run_probe(task, config, data=str(finished.train), run_dir=run)
    return json.loads((run / f"{task}.json").read_text()), table


@pytest.fixture(scope="module")
def probed(finished, tmp_path_factory):
    run = tmp_path_factory.mktemp("probe") / "run"
    return run, *probe("linear-probe", finished, run)


def test_every_block_is_measured_and_the_best_named(probed):
    _, result, table = probed
    assert [row["block"] for row in result["blocks"]] == [0, 1]
    assert (result["num_train_images"], result["num_images"], result["num_classes"]) == (36, 20, 2)
    best = result["blocks"][result["best_block"]]
    assert result["top1"] == best["top1"] == max(row["top1"] for row in result["blocks"]) > 0.9
    assert table.splitlines()[1 + result["best_block"]].endswith("best")
    assert table == linear_table(result)


def test_model_of_the_best_block_is_a_classifier(probed, finished):
    path, result, _ = probed
    stored = read_encoder_config(path)
    assert stored.architecture.depth == result["best_block"] + 1
    assert (stored.class_names, stored.pooling) == (("blue", "red"), "cls_mean")
    metrics = evaluate_model(path, str(finished.val)).metrics
    assert metrics.top1 == result["top1"]
    assert metrics.loss == pytest.approx(result["loss"], rel=1e-4)


def test_features_are_computed_once_for_both_tasks(probed, finished, monkeypatch):
    run, result, _ = probed
    monkeypatch.setattr(probe_features, "extract_features", None)
    again, _ = probe("linear-probe", finished, run)
    assert again == result
    neighbours, table = probe("knn", finished, run, "probe.ks=[1,3,500]")
    assert list(neighbours["blocks"][0]["top1"]) == ["1", "3", "36"]
    assert table == knn_table(neighbours)
    assert f"best, k={neighbours['best_k']}" in table
    best = neighbours["blocks"][neighbours["best_block"]]["top1"]
    assert neighbours["top1"] == best[str(neighbours["best_k"])] > 0.9


def test_results_repeat_bit_for_bit(probed, finished, tmp_path):
    run, result, _ = probed
    again, _ = probe("linear-probe", finished, tmp_path / "run")
    assert again == result
    for file in ("features/train.safetensors", "model/model.safetensors"):
        assert (run / file).read_bytes() == (tmp_path / "run" / file).read_bytes()


def test_features_of_changed_images_or_a_damaged_file_are_computed_again(finished, tmp_path):
    val, run = write_images(tmp_path / "val", ("blue", "red"), 3), tmp_path / "run"
    config = finetune_config(f"data.val={val}", f"encoder={finished.run / 'last'}")
    run_probe("knn", config, data=str(finished.train), run_dir=run)
    file = run / "features/val.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:100])
    run_probe("knn", config, data=str(finished.train), run_dir=run)
    assert file.read_bytes() == good
    (val / "red" / "9.png").write_bytes(noisy_png("red", 9))
    run_probe("knn", config, data=str(finished.train), run_dir=run)
    assert json.loads((run / "knn.json").read_text())["num_images"] == 7


def test_random_weights_are_the_baseline(finished, tmp_path):
    result, _ = probe("knn", finished, tmp_path / "run", "encoder=random")
    assert result["encoder"] == "random"
    assert len(result["blocks"]) == 2


def test_scores_by_hand():
    logits = torch.tensor([[2.0, 1, 0, 0, 0, 0], [0.0, 1, 2, 3, 4, 5]])
    scores = linear_scores(logits, torch.tensor([0, 0]))
    assert (scores["top1"], scores["top5"]) == (0.5, 0.5)
    p = np.exp(logits.double().numpy())
    expected = -np.log(p[[0, 1], [0, 0]] / p.sum(1)).mean()
    assert scores["loss"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.val=none"], "--val is missing"),
        (["classifier.multi_label=true"], "multi_label must be false"),
        (["probe.max_feature_gib=1e-6"], "max_feature_gib"),
        (["encoder=nowhere"], "nowhere is not an encoder"),
        (["image.img_size=18"], "multiple of patch_size"),
    ],
)
def test_bad_input_is_one_clear_line(finished, tmp_path, overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        probe("linear-probe", finished, tmp_path / "run", *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/linear-probe.json").exists()


def test_a_directory_is_for_classification_or_for_probes(probed, finished):
    config = finetune_config(f"data.val={finished.val}", f"encoder={finished.run / 'last'}")
    with pytest.raises(InputError, match="holds a run of .*linear-probe or knn, not beit finetune class"):
        run(config, data=str(finished.train), run_dir=probed[0])
    with pytest.raises(InputError, match="holds a run of beit finetune classification, not"):
        run_probe("knn", config, data=str(finished.train), run_dir=finished.run)


def test_a_directory_that_holds_something_else_is_refused_before_images_are_listed(finished, tmp_path, caplog):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with caplog.at_level(logging.INFO), pytest.raises(InputError, match="not empty and not a run"):
        probe("knn", finished, tmp_path / "full")
    assert not any("classes" in line or "expected" in line for line in caplog.messages)

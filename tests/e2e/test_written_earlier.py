"""Stores, runs, an encoder and a model that commit 365d2fa wrote are read and continued as they were then.

Made by tests/golden/make_written_at_365d2fa.py; expected.json says what that commit made of them.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from beit import cli
from beit.common.encoder import load_encoder
from beit.common.runs.metrics import read_metrics
from beit.common.store import open_store
from beit.common.tokenizer import load_tokenizer

WRITTEN = Path(__file__).parents[1] / "golden/written_at_365d2fa"
EXPECTED = json.loads((WRITTEN / "expected.json").read_text())
STORES, RUNS = ("packed", "over-tars"), ("tokenizer-run", "pretrain-run", "finetune-run")
WEIGHTS = {"pretrain-run": ["encoder/model.safetensors"], "finetune-run": ["model/model.safetensors"]}


@pytest.fixture(autouse=True)
def written(tmp_path, monkeypatch):
    """Work in a copy, under the relative names that are in the documents; with times of its own, as a checkout has."""
    shutil.copytree(WRITTEN, tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))


def beit(*words):
    assert cli.beit.main(list(words), standalone_mode=False) in (None, 0)


def digest(sample):
    found = hashlib.sha256(f"{sample['key']} {sample['label']}".encode())
    for array in (np.asarray(sample["image"]), sample["token_ids"], sample["views"]):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def names_of_tensors(file):
    data = Path(file).read_bytes()
    size = int.from_bytes(data[:8], "little")
    return sorted(name for name in json.loads(data[8 : 8 + size]) if name != "__metadata__")


@pytest.mark.parametrize("name", STORES)
def test_a_store_is_whole_and_has_the_same_samples(name, capsys):
    beit("verify", name)
    assert [digest(sample) for sample in open_store(name)] == EXPECTED[name]["digests"]
    assert len(open_store(name).shards) == 2


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_at_its_step_with_the_losses_it_would_have_had(name):
    expected = EXPECTED[name]
    settings = [word for key, value in expected["settings"].items() for word in ("--set", f"{key}={value}")]
    beit(*expected["words"], name, *settings)
    records = [record for record in read_metrics(Path(name, "metrics.jsonl")) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, 17))
    # On one machine they are equal to the last bit; another processor's matrix products round differently.
    losses = [record["loss"] for record in records[expected["step"] :]]
    assert losses == pytest.approx(expected["losses"], rel=1e-5)
    starts = json.loads(Path(name, "environment.json").read_text())["starts"]
    assert starts[-1]["resumed_from"] == f"{name}/checkpoints/step_{expected['step']}"
    assert starts[-1]["changed"] == {}
    for file in WEIGHTS.get(name, ()):
        assert names_of_tensors(Path(name, file)) == names_of_tensors(WRITTEN / name / file) == expected["keys"]


def test_an_encoder_gives_the_same_features_and_keeps_its_keys():
    expected = EXPECTED["pretrain-run"]
    ramp = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.no_grad():
        features = load_encoder("pretrain-run/encoder").eval().forward_features(ramp)[0].mean(dim=0)
    assert features.tolist() == pytest.approx(expected["features"], abs=1e-5)


def test_a_tokenizer_gives_the_same_words():
    ramp = (np.arange(16 * 16 * 3).reshape(1, 16, 16, 3) % 256).astype(np.uint8)
    token_ids = load_tokenizer("tokenizer-run").encode(ramp).flatten().tolist()
    same = np.mean(np.array(token_ids) == EXPECTED["tokenizer-run"]["token_ids"])
    assert same >= 15 / 16, "two words may lie so close that another processor chooses the other one"


def test_a_model_scores_and_predicts_the_same(capsys):
    expected = EXPECTED["finetune-run"]
    beit("evaluate", "finetune-run/model", "tars", "--out", "scores.json")
    scores = json.loads(Path("scores.json").read_text())
    for name, value in expected["scores"].items():
        assert scores[name] == pytest.approx(value, rel=1e-5), name
    beit("predict", "finetune-run/model", "tars", "--out", "labels.csv")
    rows = [line.split(",")[:2] for line in Path("labels.csv").read_text().split()]
    assert rows == expected["predictions"]

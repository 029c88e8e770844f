"""The three commands on images, through the command line, and what they promise to each other."""

import csv
import json

import pytest
import torch
from PIL import Image

from beit import cli
from beit.common.encoder import load_encoder
from beit.common.runs.metrics import read_metrics
from beit.common.store import open_store
from beit.tests.support import write_images, write_tokenizer

PRETRAIN = {
    "model.size": "tiny",
    "model.depth": "2",
    "train.steps": "30",
    "train.global_batch_size": "16",
    "train.log_interval_steps": "5",
    "optimizer.warmup_steps": "5",
    "reader.num_workers": "1",
}
FINETUNE = {
    **PRETRAIN,
    "train.steps": "20",
    "data.val": "val",
    "augment.rand_augment": "none",  # colours are all that tells the classes apart
    "mix.prob": "0",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    write_images(root / "photos/deep/er", 90)
    write_images(root / "train", 32, classes=("blue", "red"))
    write_images(root / "val", 16, classes=("blue", "red"))
    (root / "photos/broken.png").write_bytes((root / "photos/deep/er/0000.png").read_bytes()[:99])
    write_tokenizer(root / "tokenizer")
    return root


def beit(*words):
    assert cli.beit.main(list(map(str, words)), standalone_mode=False) in (None, 0)


def sets(settings):
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def test_images_to_model(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("BEIT_CACHE", str(place / "cache"))
    size = ["--img-size", 16, "--patch-size", 4]
    beit("tokenize", "photos", "store", "--tokenizer", "tokenizer", "--views", 2, *size, "--set", "threads=1")
    beit("verify", "store", "--audit", 8)
    store = open_store("store")
    assert len(store) == 90
    assert sum(row.num_skipped for row in store.shards) == 1

    beit("pretrain", "store", "pretrain", *sets(PRETRAIN))
    records = read_metrics(place / "pretrain/metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0]
    assert records[-1]["held_out_bits"] > 0
    assert (place / "pretrain/tensorboard").is_dir()
    assert load_encoder("pretrain/encoder").forward_features(torch.zeros(2, 3, 16, 16)).shape == (2, 17, 192)

    beit("finetune", "classification", "train", "finetune", "--encoder", "pretrain/encoder", *sets(FINETUNE))
    capsys.readouterr()
    beit("evaluate", "finetune/model", "val", "--out", "scores.json")
    beit("predict", "finetune/model", "val", "--out", "labels.csv")
    scores = json.loads((place / "scores.json").read_text())
    rows = list(csv.DictReader((place / "labels.csv").open()))
    right = sum(row["key"].startswith(row["label"]) for row in rows)
    assert scores["num_images"] == len(rows) == 16
    assert right / len(rows) == scores["top1"]
    assert scores["top1"] > 0.9, "blue and red are told apart by their mean colour"

    beit("show", "reconstruction", "pretrain", "--out", "picture.png", "--rows", 3)
    with Image.open(place / "picture.png") as picture:
        assert picture.width > 4 * 160
        assert picture.height > 3 * 160

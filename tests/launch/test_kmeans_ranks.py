"""`beit tokenizer train --kind kmeans` as processes: killed while it saves, and on two ranks; always the same words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from beit.tests.support import files_of, write_images

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

SETTINGS = (
    "model.vocab_size=24",
    "model.patch_size=4",
    "data.view_size=16",
    "data.num_eval_images=4",
    "clustering.steps=6",
    "clustering.painting_steps=2",
    "clustering.global_batch_size=16",
    "clustering.micro_batch_size=4",
    "clustering.revive_threshold=0.9",
    "checkpoint.interval_steps=2",
    "reader.num_workers=1",
)
WRITTEN = ("model.safetensors", "decoder.safetensors", "config.json")


def run(source: Path, out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "beit.cli", "tokenizer", "train", source, out, "--kind", "kmeans", *settings]
    everything = os.environ | {"OMP_NUM_THREADS": "1", "BEIT_CACHE": str(source.parent / "cache")} | environment
    return subprocess.run([*map(str, command), *options], capture_output=True, text=True, env=everything, timeout=600)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("kmeans") / "images", 30, size=24)


@pytest.fixture(scope="module")
def words(source: Path) -> dict[str, bytes]:
    result = run(source, source.parent / "whole" / "words")
    assert result.returncode == 0, result.stderr
    assert "per batch" in result.stderr and "of memory" in result.stderr
    return files_of(source.parent / "whole" / "words")


def test_two_ranks_find_the_words_of_one(source: Path, words: dict[str, bytes], tmp_path: Path) -> None:
    result = run(source, tmp_path / "words", "--gpus", "2")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("per batch") == 1 and "of memory per rank" in result.stderr
    assert all((tmp_path / "words" / name).read_bytes() == words[name] for name in WRITTEN)


@pytest.mark.fault
@pytest.mark.parametrize("point", ["commit:2", "committed:3"])
def test_killed_while_it_saves_it_goes_on(source: Path, words: dict[str, bytes], tmp_path: Path, point: str) -> None:
    killed = run(source, tmp_path / "words", BEIT_FAULT=point)
    assert killed.returncode != 0 and not (tmp_path / "words/model.safetensors").exists()
    result = run(source, tmp_path / "words")
    assert result.returncode == 0, result.stderr
    assert all((tmp_path / "words" / name).read_bytes() == words[name] for name in WRITTEN)

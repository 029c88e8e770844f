"""A classifier trained once on images of two colours."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from beit.finetune.train import run
from beit.tests.unit.finetune.colours import finetune_config, write_images


@dataclass
class Finished:
    train: Path
    val: Path
    run: Path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Provide a finished run of 20 steps and the images it saw."""
    root = tmp_path_factory.mktemp("finetune")
    made = Finished(
        train=write_images(root / "train", ("blue", "red"), 18),
        val=write_images(root / "val", ("blue", "red"), 10, start=100),
        run=root / "run",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEIT_CACHE", str(root / "cache"))
        run(
            finetune_config(f"data.val={made.val}", "train.steps=20", "train.eval_interval_steps=5"),
            data=str(made.train),
            run_dir=made.run,
        )
    return made

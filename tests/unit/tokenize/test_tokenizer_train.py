import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from beit.common.config import config_from_dict
from beit.common.distributed import World
from beit.common.tokenizer import load_tokenizer
from beit.tests.support import write_images
from beit.tokenize.tokenizer_config import TokenizerTrainConfig
from beit.tokenize.tokenizer_data import open_images
from beit.tokenize.tokenizer_train import TokenizerTask

SETTINGS = {
    "model": {"vocab_size": 16, "width": 16, "num_blocks": 1, "code_dim": 4},
    "data": {"view_size": 32, "crop_size": 16, "crops_per_image": 2, "num_eval_images": 4},
    "objective": {"revive_interval_steps": 2},
    "train": {"steps": 10, "global_batch_size": 4, "precision": "fp32", "log_interval_steps": 1},
    "optimizer": {"warmup_steps": 0},
    "checkpoint": {"interval_steps": 4},
    "reader": {"num_workers": 0},
}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenizerTask:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    config = config_from_dict(TokenizerTrainConfig, SETTINGS)
    source = str(write_images(tmp_path / "images", 12, size=32))
    torch.manual_seed(0)
    world = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    return TokenizerTask(config, source, open_images(source, img_size=32, cache_bytes=0), world)


def test_task_goes_through_its_phases(task: TokenizerTask) -> None:
    before = task.model.vae.codebook.detach().clone()
    metrics = [set(task.forward(task.model, batch, step)[1]) for step, batch in enumerate(task.data.micro_batches(0))]
    assert metrics[0] == set()
    assert all("usage_kl" in names for names in metrics[1:])
    assert len(metrics) == 10
    assert not torch.equal(task.model.vae.codebook, before)  # fitted to features


def test_forward_repeats_itself_on_resume(task: TokenizerTask) -> None:
    batch = next(task.data.micro_batches(5))
    assert torch.equal(task.forward(task.model, batch, 5)[0], task.forward(task.model, batch, 5)[0])


def test_every_parameter_is_trained_once(task: TokenizerTask) -> None:
    groups = task.param_groups()
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in task.model.parameters())
    assert groups[2]["lr_scale"] == 5.0 and groups[1]["weight_decay"] == 0.0


def test_evaluation_measures_from_the_first_discrete_step(task: TokenizerTask) -> None:
    assert task.evaluate(task.model, 1) == {}  # the codebook is fitted in the step after
    metrics = task.evaluate(task.model, 2)
    assert set(metrics) == {"eval_psnr", "eval_block_mean_psnr", "eval_words_used", "eval_perplexity"}
    assert metrics == task.evaluate(task.model, 2)


def test_artifacts_are_a_tokenizer_with_a_card(task: TokenizerTask, tmp_path: Path) -> None:
    task.save_artifacts(task.model.state_dict(), tmp_path / "out", 7, task.evaluate(task.model, 7))
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.vocab_size == 16
    assert tokenizer.encode(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 4, 4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert tokenizer.fingerprint in card and "step 7 of 10" in card
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["training"]["settings"]["model"]["vocab_size"] == 16


SCRIPT = """
import sys
from pathlib import Path
from beit.common.config import load_config
from beit.tokenize.tokenizer_config import TokenizerTrainConfig
from beit.tokenize.tokenizer_train import train_tokenizer
if __name__ == "__main__":
    config = load_config(TokenizerTrainConfig, recipe=sys.argv[1], overrides=sys.argv[4:], recipe_dir=Path())
    train_tokenizer(config, sys.argv[2], Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(SETTINGS))
    (tmp_path / "script.py").write_text(SCRIPT)
    source = write_images(tmp_path / "images", 12, size=32)

    def train(out: Path) -> None:
        command = [sys.executable, "script.py", "recipe.toml", str(source), str(out)]
        environment = {"BEIT_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)

    train(tmp_path / "whole")
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    train(tmp_path / "parts")
    # As if stopped after step 8, before the last checkpoint was committed.
    (tmp_path / "parts" / "checkpoints" / "step_10" / "COMMIT.json").unlink()
    (tmp_path / "parts" / "model.safetensors").unlink()
    train(tmp_path / "parts")
    resumed = load_file(tmp_path / "parts" / "model.safetensors")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert load_tokenizer(tmp_path / "whole").fingerprint == load_tokenizer(tmp_path / "parts").fingerprint

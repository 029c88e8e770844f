"""Every command of the section on channels runs, in order, on small data under the names it uses."""

import re
from pathlib import Path

import pytest
import torch

from beit.common.vit.description import read_encoder_config
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.foreign_weights import timm_vit
from beit.tests.support import write_images

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/images.md").read_text()
SECTION = re.search(r"\n## Channels\n(.*?)(?:\n## |\Z)", PAGE, re.DOTALL)[1]
SHORT = {
    "tokenize": "--views 1 --set threads=1",
    "pretrain": "--set train.steps=2 --set train.global_batch_size=8 --set optimizer.warmup_steps=1",
    "finetune": "--set train.steps=2 --set train.global_batch_size=8 --set optimizer.warmup_steps=1",
    "import": "--num-heads 4",
}


@pytest.mark.docs
@pytest.mark.timeout(900)
def test_commands_run_in_order(tmp_path):
    write_images(tmp_path / "xrays", 30, size=40)
    for name in ("labelled", "labelled-test"):
        write_images(tmp_path / name, 12, size=40, classes=("found", "nothing"))
    torch.save(timm_vit(), tmp_path / "weights.pth")
    commands = list(shown_commands(SECTION))
    assert len(commands) == 7
    run_commands(commands, tmp_path, lambda words: SHORT.get(words[0], ""))
    for folder in ("runs/xrays", "runs/found", "encoders/grey", "runs/summed"):
        assert read_encoder_config(tmp_path / folder).architecture.in_chans == 1

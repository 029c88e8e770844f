"""Every command of docs/first-hour.md runs, in order, on small data under the names it uses, and so does its Python."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.support import write_images

PAGE = (Path(__file__).resolve().parents[2] / "docs/first-hour.md").read_text()
LESS = {
    "pretrain": "--set train.steps=2 --set train.global_batch_size=8 --set reader.num_workers=0 "
    "--set optimizer.warmup_steps=0",
    "finetune classification": "--set train.steps=2 --set train.global_batch_size=8 --set reader.num_workers=0",
    "finetune linear-probe": "--set reader.num_workers=0",
    "tokenize": "--views 2",
    "tokenizer report": "--images 8",
    "report": "--no-pictures",
}

WRITTEN = ("words.html", "masks.png", "runs/pretrain/report.html", "batch.png", "comparison.html", "attention.png",
           "test.html", "hour.html")  # fmt: skip


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_commands_and_python_run_in_order(tmp_path):
    write_images(tmp_path / "photos", 40, size=64)
    write_images(tmp_path / "new-photos", 3, size=64)
    for name in ("train", "val", "test"):
        write_images(tmp_path / "labelled" / name, 16, size=64, classes=("rose", "tulip"))
    commands = list(shown_commands(PAGE))
    assert len(commands) >= 18
    asked = [command for command in commands if command.split()[1] in ("doctor", "plan")]
    assert len(asked) == 2
    for command in asked:  # which say by 1 that this machine or these few images are not fit
        words = command.split()[1:]
        said = subprocess.run([sys.executable, "-m", "beit.cli", *words], cwd=tmp_path, capture_output=True, text=True)
        assert said.returncode in (0, 1) and said.stdout, said.stderr
        commands.remove(command)
    run_commands(commands, tmp_path, lambda words: LESS.get(words[0], LESS.get(" ".join(words[:2]), "")), reports=True)
    for file in WRITTEN:
        assert (tmp_path / file).stat().st_size > 1000
    assert (tmp_path / "labels.csv").read_text().count("\n") == 4
    (tmp_path / "new-photos/0000.png").rename(tmp_path / "photo.jpg")
    for snippet in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True)

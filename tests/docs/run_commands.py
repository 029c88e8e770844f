"""Take the `beit` commands out of a page and run them, in order, as a reader would."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from beit.tests.foreign_weights import timm_vit


def shown_commands(text: str) -> Iterator[str]:
    """Yield the lines of plain code blocks that are `beit` commands."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        if not language:
            yield from (line for line in block.splitlines() if line.startswith("beit "))


def run_commands(
    commands: Sequence[str], folder: Path, shorten: Callable[[list[str]], str], *, reports: bool = False
) -> str:
    """Run commands in `folder`, each of which must succeed, and return what the last one printed.

    Args:
        commands: As shown.
        folder: Working directory.
        shorten: From the words behind `beit` to options that make a command cheap: the same code, less of it.
        reports: Whether runs write their reports, which takes two seconds each.
    """
    printed = ""
    for command in commands:
        words = shlex.split(command)[1:]
        words += shlex.split(shorten(words))
        if words[0] in ("pretrain", "finetune") or words[:2] == ["tokenizer", "train"]:
            words += [] if reports else ["--set", "run.report=false"]
        result = subprocess.run(
            [sys.executable, "-m", "beit.cli", *words], cwd=folder, capture_output=True, text=True, timeout=900
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        printed = result.stdout
    return printed


def write_public_weights(file: Path) -> None:
    """Write a tiny stand-in for a public ViT in patches of 16 px, under the names of DINO and timm."""
    state = timm_vit(dim=64)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state | {"patch_embed.proj.weight": torch.randn(64, 3, 16, 16) * 0.1}, file)

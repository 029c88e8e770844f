"""The commands that do what is planned, as one would type them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

_OWN_OPTIONS = ("tokenizer", "views", "img_size", "patch_size", "seed", "short_side", "tile", "overlap")
"""Settings of `beit tokenize` that have an option of their own."""
STORE, PRETRAIN_RUN, FINETUNE_RUN = "store", "runs/pretrain", "runs/finetune"


def tokenize_command(source: str, settings: Sequence[str], *, gpus: int | None) -> str:
    """Return `beit tokenize` with settings as KEY=VALUE, the last of each key counting."""
    last = dict(setting.split("=", 1) for setting in settings)
    words = ["beit", "tokenize", source or "SOURCE", STORE]
    for key, value in last.items():
        if key in _OWN_OPTIONS:
            words += [f"--{key.replace('_', '-')}", value]
        elif (key, value) == ("materialize", "true"):
            words.append("--materialize")
        else:
            words += ["--set", f"{key}={value}"]
    return shlex.join([*words, *_ranks(gpus, 1)])


def pretrain_command(
    store: str, recipe: str | None, settings: Sequence[str], *, gpus: int | None, machines: int, init: bool
) -> str:
    """Return `beit pretrain`; with `init` an encoder is still to be named."""
    words = ["beit", "pretrain", store, PRETRAIN_RUN, *_recipe(recipe), *_ranks(gpus, machines)]
    words += ["--init", "ENCODER"] if init else []
    return shlex.join([*words, *_set(settings)])


def finetune_command(recipe: str | None, settings: Sequence[str], *, gpus: int | None, machines: int) -> str:
    """Return `beit finetune classification` on the encoder of the pre-training."""
    words = ["beit", "finetune", "classification", "labelled/train", FINETUNE_RUN]
    words += ["--encoder", f"{PRETRAIN_RUN}/encoder", "--val", "labelled/val"]
    return shlex.join([*words, *_recipe(recipe), *_ranks(gpus, machines), *_set(settings)])


def _recipe(recipe: str | None) -> list[str]:
    return [] if recipe is None else ["--recipe", recipe]


def _ranks(gpus: int | None, machines: int) -> list[str]:
    words = [] if gpus is None or (gpus == 1 and machines == 1) else ["--gpus", str(gpus)]
    return words if machines == 1 else [*words, "--hostfile", "HOSTS"]


def _set(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]

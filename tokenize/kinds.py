"""The kinds of tokenizers that `beit tokenizer train` makes: settings and training of each, imported when it is chosen.

Here: the table and what a command line makes of it. Torch-free. Not here: the networks, whose table is in
`common/tokenizers/directory.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from beit.common.config import config_from_dict, find_recipe, read_toml
from beit.common.errors import InputError, require
from beit.common.runs.kinds import TOKENIZER, require_command


class TeacherChoice(NamedTuple):
    """Which teacher a user named."""

    name: str
    """Folder of an encoder, or `module:Class`."""
    block: int | None
    """Whose features; None for the last, and for code."""


@dataclass(frozen=True, slots=True)
class TokenizerKind:
    """Where to find how one kind is trained."""

    room: str
    """Package below `beit.tokenize`, with the modules `config` and `train`."""
    config_name: str
    """Class of its settings, in `config`."""
    train_name: str
    """Function in `train`, called as (config, source, out, resume=...), and with teacher=TeacherChoice or None by those
    that take one."""
    teacher: Literal["none", "optional", "needed"]
    """Whether it learns from one."""

    @property
    def config(self) -> Any:
        """The class of its settings."""
        return getattr(import_module(f"beit.tokenize.{self.room}.config"), self.config_name)

    @property
    def train(self) -> Callable[..., None]:
        """Its training; brings torch."""
        found: Callable[..., None] = getattr(import_module(f"beit.tokenize.{self.room}.train"), self.train_name)
        return found


KINDS = {
    "dvae": TokenizerKind("tokenizer_training", "TokenizerTrainConfig", "train_tokenizer", teacher="none"),
    "kmeans": TokenizerKind("clustering", "ClusteringConfig", "train_kmeans", teacher="optional"),
    "vqkd": TokenizerKind("distillation", "DistillationConfig", "train_distilled", teacher="needed"),
}
DEFAULT_KIND, DEFAULT_WITH_TEACHER = "dvae", "vqkd"


def choose_kind(kind: str | None, teacher: str | None, block: int | None) -> tuple[str, TeacherChoice | None]:
    """Return the kind to train and its teacher, from --kind, --teacher and --teacher-block."""
    name = kind or (DEFAULT_KIND if teacher is None else DEFAULT_WITH_TEACHER)
    needs = KINDS[name].teacher
    require(teacher != "", "--teacher is empty; give the folder of an encoder, or module:Class")
    require(teacher is not None or block is None, f"--teacher-block ({block}) needs --teacher, whose block it is")
    require(
        teacher is None or needs != "none",
        f"--kind {name} learns from images alone, without --teacher ({teacher}); leave one of the two out",
    )
    require(teacher is not None or needs != "needed", f"--kind {name} learns from a teacher; add --teacher ENCODER")
    return name, None if teacher is None else TeacherChoice(teacher, block)


def check_recipe(kind: str, recipe: str | None, recipes: Path) -> None:
    """Refuse a recipe that is one of another kind only; what is wrong in a recipe of this kind is not said here."""
    if recipe is not None and (others := _only_others(kind, find_recipe(recipe, recipes))):
        raise InputError(f"--recipe {recipe} is one for --kind {' or '.join(others)}, not {kind}; name that kind")


def check_place(kind: str, out: Path) -> None:
    """Refuse the folder of a run of another kind, or of another command."""
    require_command(out, f"{TOKENIZER}{kind}")


def _only_others(kind: str, settings: Path) -> list[str]:
    """Return the kinds whose settings a TOML file holds, if it does not hold some of this kind."""
    values = read_toml(settings)
    return [] if _fits(kind, values, str(settings)) else [name for name in KINDS if _fits(name, values, str(settings))]


def _fits(kind: str, values: dict[str, Any], origin: str) -> bool:
    try:
        config_from_dict(KINDS[kind].config, values, origin=origin)
    except InputError:
        return False
    return True

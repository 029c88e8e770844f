"""Which settings a run may change when it goes on: freely, on purpose, or never.

Free are those that change speed, rhythm and reporting, but not what is learned; `beit compare` looks past them, too.
Never changed are those that the checkpoint's data position or the shape of its tensors depend on. All others need
--resume PATH instead of "auto".
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.common.config import config_from_dict, config_to_dict, flatten
from beit.common.errors import InputError
from beit.common.runs.kinds import require_same_command
from beit.common.runs.layout import CONFIG

logger = logging.getLogger(__name__)

_SAID_BY_RECIPES = ("data.made_for",)
"""What settings are meant for, which is nothing that a run does."""
SPEED_KEYS = (
    "train.micro_batch_size",
    "train.log_interval_steps",
    "train.eval_interval_steps",
    "train.meeting_timeout_seconds",
    "train.collective_timeout_seconds",
    "checkpoint.",
    "deepspeed.",
    "run.",
    "speed.",
    "profile.",
    "reader.num_workers",
    "reader.prefetch_batches",
    "reader.timeout_seconds",
    "reader.parquet_cache_bytes",
    "reader.cache_dir",
    "reader.cache_bytes",
    "evaluation.micro_batch_size",
    "held_out.",
    "probe.",
    *_SAID_BY_RECIPES,
)
"""Settings of all trainings that decide speed, rhythm and reporting, but not what is learned: names, or prefixes that
end in a dot. No other list of them exists."""
FREE_KEYS = (*SPEED_KEYS, "train.early_stop_evals")
"""What a run may change when it goes on: these, and when it gives up."""
FIXED_KEYS = (
    *("init", "adapt", "model.", "teacher.", "optimizer.kind"),
    *("train.seed", "train.global_batch_size", "reader.window_shards"),
)
_NOT_FIXED = ("model.drop_path",)
_LEFT_TO_ENCODER = {
    "model.size": "base",
    "model.embed_dim": None,
    "model.depth": None,
    "model.num_heads": None,
    "model.mlp_ratio": 4.0,
    "model.init_values": None,
    "model.use_abs_pos_emb": False,
    "model.pos_bias": "shared",
    "image.img_size": None,
    "image.patch_size": None,
    "image.mean": [0.5, 0.5, 0.5],
    "image.std": [0.5, 0.5, 0.5],
}
"""What earlier fine-tunings recorded where a setting was left out, whatever was in force; now that is recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One setting that differs from the saved run's."""

    name: str
    """Section and key."""
    before: Any
    """In the saved run; None where it was left out."""
    now: Any
    """In the present settings."""

    def __str__(self) -> str:
        return f"{self.name} was {self.before}, is {self.now}"


def find_changes(config_file: Path, config: Any, *, run: Path | str | None = None) -> list[Change]:
    """Compare the settings in a saved run's config.toml with the present ones, a dataclass; they are of one command.

    `run` is what an error names, if not the file's folder.
    """
    try:
        values = tomllib.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{config_file} is not valid TOML ({error}); restore it or name a new directory") from None
    require_same_command(run or config_file.parent, values, config_to_dict(config))
    saved, current = flatten(with_defaults(values, type(config), config_file)), flatten(config_to_dict(config))
    saved |= _left_to_encoder(flatten(values), current)
    names = sorted(name for name in saved.keys() | current.keys() if saved.get(name) != current.get(name))
    return [
        Change(name=name, before=saved.get(name), now=current.get(name))
        for name in names
        if name not in _SAID_BY_RECIPES
    ]


def with_defaults(values: dict[str, Any], schema: type, config_file: Path) -> dict[str, Any]:
    """Fill in settings that the saved run's version did not have: their defaults are what it did."""
    try:
        return config_to_dict(config_from_dict(schema, values, origin=str(config_file)))
    except InputError:  # settings that are not known any more; they will be named as changed
        return values


def _left_to_encoder(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier fine-tuning left to its encoder, or to random weights, as the present settings have it."""
    if "encoder" not in saved or saved.keys() >= _LEFT_TO_ENCODER.keys() - {"model.size"}:
        return {}
    left = {name for name, value in _LEFT_TO_ENCODER.items() if saved.get(name) == value}
    if saved["encoder"] == "random":  # a size was the model's there
        left -= {"model.size"}
    return {name: current.get(name) for name in left}


def check_changes(
    changes: Sequence[Change],
    run: Path | str,
    *,
    is_on_purpose: bool,
    free_keys: Sequence[str],
    is_copy: bool = False,
) -> None:
    """Print the changes that are allowed and refuse the others.

    Args:
        changes: From `find_changes`.
        run: The saved run, for messages.
        is_on_purpose: Whether the user named what to continue from.
        free_keys: What may differ beside `FREE_KEYS`.
        is_copy: Whether `run` is the copy that run.sync_to names, of which nothing is here yet.
    """
    fixed = [change for change in changes if matches(change.name, FIXED_KEYS) and change.name not in _NOT_FIXED]
    bound = [change for change in changes if not matches(change.name, (*FREE_KEYS, *free_keys))]
    if is_copy and (fixed or bound):
        differing = fixed + [change for change in bound if change not in fixed]
        raise InputError(
            f"run.sync_to ({run}) holds a run with other settings ({_listed(differing)}); use the same to go on with "
            "it, or name a new or empty place"
        )
    where = f"(--recipe {Path(run) / CONFIG} has them)"
    if fixed:
        raise InputError(
            f"{run} holds a run with other settings that its checkpoints depend on ({_listed(fixed)}); use the same "
            f"{where}, or start a new run in a new directory"
        )
    if bound and not is_on_purpose:
        raise InputError(
            f"{run} holds a run with other settings ({_listed(bound)}); use the same {where}, name a new directory, or "
            f"continue on purpose with --resume {run}"
        )
    if changes:
        logger.info("settings changed since: %s", _listed(changes))


def matches(name: str, keys: Sequence[str]) -> bool:
    """Tell whether a setting is one of `keys`, or begins with one that ends in a dot."""
    return any(name == key or (key[-1] == "." and name.startswith(key)) for key in keys)


def _listed(changes: Sequence[Change]) -> str:
    return "; ".join(map(str, changes))

"""The classes of settings name settings that exist, and every shape of a model is fixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from beit.common.config import _all_keys, config_to_toml, load_config
from beit.common.errors import InputError
from beit.common.runs.changes import FIXED_KEYS, FREE_KEYS, check_changes, find_changes
from beit.finetune.config import FinetuneConfig
from beit.pretrain.config import PretrainConfig
from beit.tokenize.distillation.config import DistillationConfig
from beit.tokenize.tokenizer_training.config import TokenizerTrainConfig

SCHEMAS = (PretrainConfig, FinetuneConfig, TokenizerTrainConfig, DistillationConfig)


def test_listed_keys_exist() -> None:
    keys = [key for schema in SCHEMAS for key in _all_keys(schema)]
    for listed in (*FREE_KEYS, *FIXED_KEYS):
        assert [key for key in keys if key == listed or (listed[-1] == "." and key.startswith(listed))], listed


@pytest.mark.parametrize(
    ("name", "value", "is_on_purpose", "message"),
    [
        ("run.sync_to", '"/copy"', False, None),
        ("deepspeed.zero_stage", "2", False, None),
        ("reader.cache_bytes", "0", False, None),
        ("held_out.pictures", "0", False, None),
        ("train.early_stop_evals", "3", False, None),
        ("optimizer.lr", "1e-4", False, "with --resume"),
        ("optimizer.lr", "1e-4", True, None),
        ("model.drop_path", "0.2", True, None),
        ("model.depth", "3", True, "start a new run"),
        ("train.global_batch_size", "64", True, "start a new run"),
    ],
)
def test_a_change_is_free_bound_or_fixed(
    tmp_path: Path, name: str, value: str, is_on_purpose: bool, message: str | None
) -> None:
    before = load_config(PretrainConfig, recipe=None, overrides=[f"{name}={value}"], recipe_dir=tmp_path)
    (tmp_path / "config.toml").write_text(config_to_toml(before))
    changes = find_changes(tmp_path / "config.toml", PretrainConfig())
    assert [change.name for change in changes] == [name]
    if message is None:
        check_changes(changes, tmp_path, is_on_purpose=is_on_purpose, free_keys=())
        return
    with pytest.raises(InputError, match=message):
        check_changes(changes, tmp_path, is_on_purpose=is_on_purpose, free_keys=())

"""What docs/long-runs.md names exists: settings, recipes, variables; its hostfile is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from beit.common.config import _all_keys
from beit.common.processes.cluster import forwarded_variables, read_hostfile
from beit.pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/long-runs.md").read_text()
pytestmark = pytest.mark.docs


def test_settings_and_recipes_exist() -> None:
    keys = _all_keys(PretrainConfig)
    sections = {key.partition(".")[0] for key in keys}
    named = set(re.findall(r"`?(?:--set )?([a-z_]+\.[a-z_]+|[a-z_]+\.\*)(?==|`)", PAGE))
    settings = {name for name in named if name.partition(".")[0] in sections and not name.endswith(".json")}
    assert len(settings) > 12
    assert not [name for name in settings if name not in keys and not name.endswith(".*")]
    for recipe in re.findall(r"--recipe (\S+)", PAGE):
        assert (ROOT / f"pretrain/recipes/{recipe}.toml").is_file()


def test_hostfile_and_variables_are_as_shown(tmp_path: Path) -> None:
    shown = PAGE.partition("```text\n")[2].partition("```")[0]
    (tmp_path / "hosts").write_text(shown)
    assert read_hostfile(tmp_path / "hosts") == {"worker-1": 8, "worker-2": 8}
    prefixes = re.findall(r"`([A-Z]+_|PYTHON)`", PAGE)
    assert len(prefixes) > 10
    assert len(forwarded_variables({f"{prefix}X": "1" for prefix in prefixes})) >= len(prefixes)

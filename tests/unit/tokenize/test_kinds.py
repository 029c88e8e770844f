from pathlib import Path

import pytest
from click.testing import CliRunner

from beit.common.errors import InputError
from beit.tokenize.commands import RECIPES, tokenizer_train_command
from beit.tokenize.kinds import KINDS, check_recipe, choose_kind


def test_every_kind_has_settings_and_a_training() -> None:
    for kind in KINDS.values():
        assert kind.config() is not None and callable(kind.train)


def test_a_dvae_is_the_default_and_has_no_teacher() -> None:
    assert choose_kind(None, None, None) == ("dvae", None)
    with pytest.raises(InputError, match=r"--kind dvae learns from images alone, without --teacher \(runs/a\)"):
        choose_kind("dvae", "runs/a", None)
    with pytest.raises(InputError, match=r"--teacher-block \(3\) needs --teacher"):
        choose_kind(None, None, 3)


def test_every_shipped_recipe_is_one_of_some_kind() -> None:
    for recipe in sorted(RECIPES.glob("*.toml")):
        kinds = [name for name in KINDS if _is_of(name, recipe)]
        assert kinds, recipe.name


def _is_of(kind: str, recipe: Path) -> bool:
    try:
        check_recipe(kind, str(recipe), RECIPES)
    except InputError:
        return False
    return True


def test_an_unknown_kind_is_named_with_those_there_are(tmp_path: Path) -> None:
    result = CliRunner().invoke(tokenizer_train_command, ["photos", str(tmp_path / "out"), "--kind", "gan"])
    assert result.exit_code == 2 and "'gan' is not" in result.output and "dvae" in result.output
    assert not (tmp_path / "out").exists()

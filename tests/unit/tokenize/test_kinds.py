from pathlib import Path

import pytest
from click.testing import CliRunner

from beit.common.config import config_to_toml
from beit.common.errors import InputError
from beit.tokenize.commands import RECIPES, tokenizer_train_command
from beit.tokenize.kinds import KINDS, check_place, check_recipe, choose_kind


def test_every_kind_has_settings_and_a_training() -> None:
    for kind in KINDS.values():
        assert kind.config() is not None and callable(kind.train)


def test_a_dvae_is_the_default_and_has_no_teacher() -> None:
    assert choose_kind(None, None, None) == ("dvae", None)
    with pytest.raises(InputError, match=r"--kind dvae learns from images alone, without --teacher \(runs/a\)"):
        choose_kind("dvae", "runs/a", None)
    with pytest.raises(InputError, match=r"--teacher-block \(3\) needs --teacher"):
        choose_kind(None, None, 3)


def test_an_empty_teacher_is_not_the_current_folder() -> None:
    for kind in (None, "kmeans", "vqkd"):
        with pytest.raises(InputError, match="--teacher is empty; give the folder of an encoder"):
            choose_kind(kind, "", None)


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


def test_a_recipe_of_another_kind_is_refused_by_the_name_of_its_own() -> None:
    check_recipe("kmeans", "kmeans_pixels_patch4_32", RECIPES)
    with pytest.raises(InputError, match="--recipe tokenizer_mini is one for --kind dvae, not kmeans; name that kind"):
        check_recipe("kmeans", "tokenizer_mini", RECIPES)
    with pytest.raises(InputError, match="is one for --kind kmeans, not dvae"):
        check_recipe("dvae", "kmeans_pixels_patch8_64", RECIPES)


def test_a_folder_of_another_kind_is_refused_by_the_name_of_its_own(tmp_path: Path) -> None:
    check_place("dvae", tmp_path)
    (tmp_path / "config.toml").write_text(config_to_toml(KINDS["kmeans"].config()))
    check_place("kmeans", tmp_path)
    with pytest.raises(
        InputError,
        match="holds a run of beit .* --kind kmeans, not beit .* --kind dvae; run that",
    ):
        check_place("dvae", tmp_path)


def test_an_unknown_kind_is_named_with_those_there_are(tmp_path: Path) -> None:
    result = CliRunner().invoke(tokenizer_train_command, ["photos", str(tmp_path / "out"), "--kind", "gan"])
    assert result.exit_code == 2 and "'gan' is not" in result.output and "dvae" in result.output
    assert not (tmp_path / "out").exists()

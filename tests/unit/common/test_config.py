from dataclasses import dataclass, field
from typing import Literal

import pytest

from beit.common.config import config_from_dict, config_to_dict, config_to_toml, load_config
from beit.common.errors import InputError, require


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optimizer.lr ({self.lr}) must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    steps: int = 10
    name: str = "x"
    init_values: float | None = 0.1
    on: bool = False
    optimizer: Inner = field(default_factory=Inner)


def load(tmp_path, *overrides, recipe=None):
    return load_config(Outer, recipe=recipe, overrides=overrides, recipe_dir=tmp_path)


def test_overrides_beat_the_recipe_and_the_recipe_beats_defaults(tmp_path):
    (tmp_path / "short.toml").write_text('steps = 3\nname = "r"\n[optimizer]\nlr = 0.5\n')
    config = load(tmp_path, "optimizer.lr=0.25", "init_values=none", "on=true", recipe="short")
    assert config == Outer(steps=3, name="r", init_values=None, on=True, optimizer=Inner(lr=0.25))


def test_toml_round_trip_is_the_identity(tmp_path):
    config = Outer(steps=7, optimizer=Inner(betas=(0.5, 0.6), mode="b"))
    (tmp_path / "saved.toml").write_text(config_to_toml(config))
    assert load(tmp_path, recipe=tmp_path / "saved.toml") == config
    assert config_from_dict(Outer, config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "did you mean 'optimizer.lr'"),
        ("lr=1", "did you mean 'optimizer.lr'"),
        ("optimiser.lr=1", "did you mean 'optimizer.lr'"),
        ("steps=many", "steps ('many') in --set must be of type int"),
        ("steps=1.5", "must be of type int"),
        ("on=1", "must be of type bool"),
        ("optimizer.mode=c", "must be one of 'a', 'b'"),
        ("optimizer.betas=[1.0]", "must have 2 entries"),
        ("optimizer.lr=-1", "optimizer.lr (-1.0) must be positive"),
        ("steps", "must have the form section.key=value"),
        ("optimizer=3", "must be a section"),
    ],
)
def test_a_wrong_override_gives_one_clear_line(tmp_path, override, message):
    with pytest.raises(InputError) as caught:
        load(tmp_path, override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_none_survives_the_round_trip_where_it_is_not_the_default(tmp_path):
    config = load(tmp_path, "init_values=none")
    assert config.init_values is None
    (tmp_path / "saved.toml").write_text(config_to_toml(config))
    assert load(tmp_path, recipe="saved").init_values is None


def test_a_string_setting_stays_a_string_whatever_it_looks_like(tmp_path):
    assert load(tmp_path, "name=1").name == "1"


def test_an_unknown_recipe_names_the_shipped_ones(tmp_path):
    (tmp_path / "tiny.toml").write_text("")
    with pytest.raises(InputError, match="tiny"):
        load(tmp_path, recipe="tinny")


def test_malformed_toml_is_an_input_error(tmp_path):
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(InputError, match="not valid TOML"):
        load(tmp_path, recipe="bad")

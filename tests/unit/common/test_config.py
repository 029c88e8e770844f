from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from beit.common.config import (
    above,
    at_least,
    checked,
    config_from_dict,
    config_to_dict,
    config_to_toml,
    flatten,
    load_config,
    one_of,
    within,
)
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


@checked("section")
class Bounded:
    count: Annotated[int | None, at_least(1)] = 1
    interval: Annotated[int, at_least(0, "0 is never")] = 0
    rate: Annotated[float, above(0)] = 0.5
    share: Annotated[float, within("(0, 1]")] = 1.0
    below: Annotated[float, within("[0, 1)")] = 0.0
    pair: Annotated[tuple[float, float], above(0)] = (1.0, 2.0)
    side: Annotated[int, one_of((4, 8))] = 8
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        require(self.rate <= self.pair[1], f"section.rate ({self.rate}) must not exceed section.pair")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "section.count (0) must be at least 1"),
        ({"interval": -1}, "section.interval (-1) must not be negative; 0 is never"),
        ({"rate": 0.0}, "section.rate (0.0) must be above 0"),
        ({"share": 0.0}, "section.share (0.0) must lie in (0, 1]"),
        ({"share": 1.5}, "section.share (1.5) must lie in (0, 1]"),
        ({"share": float("nan")}, "section.share (nan) must lie in (0, 1]"),
        ({"below": 1.0}, "section.below (1.0) must lie in [0, 1)"),
        ({"pair": (1.0, 0.0)}, "section.pair (1.0, 0.0) must be above 0"),
        ({"side": 5}, "section.side (5) must be one of 4, 8"),
        ({"mode": "c"}, "section.mode ('c') must be one of a, b"),
        ({"rate": 3.0}, "section.rate (3.0) must not exceed section.pair"),
    ],
)
def test_a_value_outside_its_bounds_is_refused_however_it_comes(values, message):
    with pytest.raises(InputError) as caught:
        Bounded(**values)
    assert str(caught.value) == message
    if "mode" not in values:  # from a file, the type is checked first
        with pytest.raises(InputError) as caught:
            config_from_dict(Bounded, values)
        assert str(caught.value) == message


def test_what_lies_on_a_closed_end_or_is_left_out_passes():
    assert Bounded(count=None, share=1.0, below=0.0).count is None
    assert config_from_dict(Bounded, {"count": "none"}).count is None


def test_an_inherited_field_with_another_default_keeps_its_bounds():
    @checked("section")
    class Narrower(Bounded):
        count: int | None = 5

    with pytest.raises(InputError, match=r"section.count \(0\) must be at least 1"):
        Narrower(count=0)


def test_a_retired_setting_is_passed_over_where_it_asked_for_what_is_done_now():
    @checked()
    class Whole:
        augment: Bounded = field(default_factory=Bounded)

    old = {"augment": {"rate": 0.25, "repeats": 1}}
    assert config_from_dict(Whole, old) == Whole(augment=Bounded(rate=0.25))
    assert flatten(old) == {"augment.rate": 0.25}
    with pytest.raises(InputError, match="unknown key 'augment.repeats'"):
        config_from_dict(Whole, {"augment": {"repeats": 3}})

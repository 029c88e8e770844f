"""Settings: frozen dataclasses are the schema, recipes are TOML files, `--set section.key=value` has the last word.

Precedence: defaults < recipe < overrides. Unknown keys are errors that name the nearest valid one. What one setting
may be stands in its annotation, as in `Annotated[int, at_least(1)]`, and `checked` sees to it; what several must agree
on is checked by their class. This module imports no torch, so that a wrong setting is reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from beit.common.errors import InputError

Config = TypeVar("Config")

NONE = "none"
"""How a recipe or an override says that an optional setting is off."""
RETIRED = {"augment.repeats": 1}
"""Settings that are gone, with the value that asked for what is done now; files of older runs may still state it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bound:
    """What a setting may be; stands in the annotation of its field. None always passes, of a tuple every entry must."""

    rule: str
    """As it reads after "must"."""
    holds: Callable[[Any], bool]
    """Tells whether one value, or one entry, keeps the rule; not a number never does."""
    hint: str = ""
    """What else the message says: why, or the way out."""


def at_least(low: float, hint: str = "") -> Bound:
    """Allow `low` and what is above."""
    return Bound(f"be at least {low}" if low else "not be negative", lambda value: value >= low, hint)


def above(low: float, hint: str = "") -> Bound:
    """Allow what is above `low`."""
    return Bound(f"be above {low}", lambda value: value > low, hint)


def within(interval: str, hint: str = "") -> Bound:
    """Allow an interval in the usual notation: "(0, 1]" is above 0 and at most 1."""
    low, high = map(float, interval[1:-1].split(","))
    is_above = operator.gt if interval[0] == "(" else operator.ge
    is_below = operator.lt if interval[-1] == ")" else operator.le
    return Bound(f"lie in {interval}", lambda value: is_above(value, low) and is_below(value, high), hint)


def one_of(choices: Iterable[Any]) -> Bound:
    """Allow some values only; a `Literal` needs no bound to say so."""
    allowed = tuple(choices)
    return Bound(f"be one of {', '.join(map(str, allowed))}", lambda value: value in allowed)


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def checked(section: str = "") -> Callable[[type[Config]], type[Config]]:
    """Make a frozen dataclass that raises an `InputError` if a field is outside its bounds, however it was built.

    Its own `__post_init__`, where it has one, comes after that and checks what several fields must agree on.

    Args:
        section: Where users find the settings, for messages: "train" for train.epochs.
    """

    def decorate(cls: type[Config]) -> type[Config]:
        check_rest: Callable[[Config], None] | None = getattr(cls, "__post_init__", None)

        def check(self: Config) -> None:
            _check_bounds(self, f"{section}." if section else "")
            if check_rest is not None:
                check_rest(self)

        cls.__post_init__ = check  # type: ignore[attr-defined]
        return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)

    return decorate


def _check_bounds(config: Any, prefix: str) -> None:
    for name, bound in _bounds(config.__class__):
        value = getattr(config, name)
        entries = value if isinstance(value, tuple) else (value,)
        if value is not None and not all(map(bound.holds, entries)):
            shown = value if isinstance(value, tuple) else f"({value!r})"
            raise InputError(f"{prefix}{name} {shown} must {bound.rule}" + (f"; {bound.hint}" if bound.hint else ""))


@cache
def _bounds(schema: Any) -> list[tuple[str, Bound]]:
    """List the bounds of a dataclass by field, those of its `Literal` fields included.

    A class that gives an inherited field another default keeps the bounds that the field had there.
    """
    bounds: list[tuple[str, Bound]] = []
    for base in schema.__mro__[-2::-1]:
        hints = typing.get_type_hints(base, include_extras=True)
        for name in base.__annotations__:
            bounds += [(name, bound) for bound in getattr(hints[name], "__metadata__", ()) if isinstance(bound, Bound)]
            if typing.get_origin(hints[name]) is typing.Literal:
                bounds.append((name, one_of(typing.get_args(hints[name]))))
    return bounds


def load_config(
    schema: type[Config], *, recipe: str | Path | None, overrides: Sequence[str], recipe_dir: Path
) -> Config:
    """Build a `schema` instance from its defaults, a recipe and command-line overrides.

    Args:
        schema: A frozen dataclass, possibly nested.
        recipe: Name of a shipped recipe in `recipe_dir`, a path to a TOML file, or None.
        overrides: Items of the form "section.key=value"; the value is read as TOML, as a plain string where that fails.
        recipe_dir: Folder of the shipped recipes.
    """
    values: dict[str, Any] = {}
    origin = "defaults"
    if recipe is not None:
        path = find_recipe(recipe, recipe_dir)
        values, origin = _read_toml(path), str(path)
    config = config_from_dict(schema, values, origin=origin)
    if not overrides:
        return config
    for override in overrides:
        _apply_override(schema, values, override)
    return config_from_dict(schema, values, origin="--set")


def find_recipe(recipe: str | Path, recipe_dir: Path) -> Path:
    """Return the file of a recipe given by shipped name or by path."""
    shipped = recipe_dir / f"{recipe}.toml"
    if shipped.is_file():
        return shipped
    path = Path(recipe)
    if path.is_file():
        return path
    names = sorted(file.stem for file in recipe_dir.glob("*.toml"))
    raise InputError(f"recipe {str(recipe)!r} is neither a file nor a shipped recipe ({', '.join(names)})")


def config_from_dict(schema: type[Config], values: Mapping[str, Any], *, origin: str = "config") -> Config:
    """Build a `schema` instance from nested mappings; keys left out keep their defaults."""
    if not isinstance(values, Mapping):
        raise InputError(f"{origin} must hold keys with values, not {values!r:.80}")
    return typing.cast(Config, _build(schema, values, prefix="", where=_Where(schema, origin)))


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return the settings as nested plain values, tuples as lists.

    TOML has no null: None is left out where it is the default, and the word "none" where it is not.
    """
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = config_to_dict(value)
        elif isinstance(value, tuple):
            result[field.name] = list(value)
        elif value is not None:
            result[field.name] = value
        elif field.default is not None and field.default is not dataclasses.MISSING:
            result[field.name] = NONE
    return result


def config_to_toml(config: Any) -> str:
    """Return the settings as a TOML document that `load_config` reads back as a recipe."""
    return tomli_w.dumps(config_to_dict(config))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under flat names, such as optimizer.lr; retired ones are left out."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return {name: value for name, value in flat.items() if (name, value) not in RETIRED.items()}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of text that is not UTF-8, and of numbers with 5000 digits
        raise InputError(f"{path} is not valid TOML: {error}") from None


def _apply_override(schema: type, values: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise InputError(f"--set {override!r} must have the form section.key=value")
    *sections, last = name.strip().split(".")
    target, expected = values, schema
    for section in sections:
        field_types = _field_types(expected)
        if section not in field_types or not dataclasses.is_dataclass(field_types[section]):
            raise InputError(_unknown_key(name, _Where(schema, "--set")))
        expected = field_types[section]
        target = target.setdefault(section, {})
    target[last] = _parse_value(text.strip(), _field_types(expected).get(last))


def _parse_value(text: str, expected: Any) -> Any:
    if expected is str:  # "--set tokenizer=1" means the name "1", not a number
        return text.strip("\"'")
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


@dataclasses.dataclass(frozen=True, slots=True)
class _Where:
    """What error messages need: the whole schema, to suggest keys from, and where the values come from."""

    schema: Any
    origin: str


@cache
def _field_types(schema: Any) -> dict[str, Any]:
    # Annotations are compiled each time they are asked for, and a store is read with a schema for every shard.
    return typing.get_type_hints(schema)


def _build(schema: Any, values: Mapping[str, Any], *, prefix: str, where: _Where) -> Any:
    field_types = _field_types(schema)
    names = [field.name for field in dataclasses.fields(schema)]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if (prefix + key, value) in RETIRED.items():
            continue
        if key not in names:
            raise InputError(_unknown_key(prefix + key, where))
        arguments[key] = _convert(field_types[key], value, name=prefix + key, where=where)
    return schema(**arguments)


def _convert(expected: Any, value: Any, *, name: str, where: _Where) -> Any:
    if dataclasses.is_dataclass(expected):
        if not isinstance(value, Mapping):
            raise InputError(f"{name} ({value!r}) in {where.origin} must be a section with keys of its own")
        return _build(expected, value, prefix=f"{name}.", where=where)
    kind = typing.get_origin(expected)
    if kind in (typing.Union, types.UnionType):
        return _convert_union(expected, value, name=name, where=where)
    if kind is typing.Literal:
        options = typing.get_args(expected)
        if value in options and not isinstance(value, bool) | isinstance(options[0], bool):
            return value
        raise InputError(f"{name} ({value!r}) in {where.origin} must be one of {', '.join(map(repr, options))}")
    if kind is tuple:
        return _convert_tuple(expected, value, name=name, where=where)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, expected) and (expected is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{name} ({value!r}) in {where.origin} must be of type {expected.__name__}")


def _convert_union(expected: Any, value: Any, *, name: str, where: _Where) -> Any:
    options = [option for option in typing.get_args(expected) if option is not type(None)]
    if len(options) < len(typing.get_args(expected)) and (value is None or str(value).lower() == NONE):
        return None
    for option in options[:-1]:
        try:
            return _convert(option, value, name=name, where=where)
        except InputError:
            continue  # the last alternative's error is the one shown
    return _convert(options[-1], value, name=name, where=where)


def _convert_tuple(expected: Any, value: Any, *, name: str, where: _Where) -> tuple[Any, ...]:
    items = typing.get_args(expected)
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} ({value!r}) in {where.origin} must be a list")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise InputError(f"{name} ({value!r}) in {where.origin} must have {len(items)} entries")
    pairs = enumerate(zip(items, value, strict=True))
    return tuple(_convert(item, entry, name=f"{name}[{i}]", where=where) for i, (item, entry) in pairs)


def _all_keys(schema: Any, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, kind in _field_types(schema).items():
        keys += _all_keys(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else [prefix + name]
    return keys


def _unknown_key(name: str, where: _Where) -> str:
    keys = _all_keys(where.schema)
    # A key in the wrong section, or in none, is as common a slip as a typo.
    leaf = name.rpartition(".")[2]
    nearest = [key for key in keys if key.rpartition(".")[2] == leaf] or difflib.get_close_matches(name, keys)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys: {', '.join(keys)}"
    return f"unknown key {name!r} in {where.origin}; {hint}"

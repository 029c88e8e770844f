"""Settings: frozen dataclasses are the schema, recipes are TOML files, `--set section.key=value` has the last word.

Precedence: defaults < recipe < overrides. Unknown keys are errors that name the nearest valid one. What one setting
may be stands in its annotation, as in `Annotated[int, at_least(1)]`, and `checked` sees to it; what several must agree
on is checked by their class. This module imports no torch, so that a wrong setting is reported at once.
"""

from __future__ import annotations

import dataclasses
import operator
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from beit.common.errors import InputError, did_you_mean, nearest

Config = TypeVar("Config")

NONE = "none"
"""How a recipe or an override says that an optional setting is off."""
_ALSO_CALLED = {
    "optimizer.lr": "learning_rate base_lr blr max_lr peak_lr",
    "optimizer.min_lr": "min_learning_rate lr_min eta_min final_lr end_lr",
    "optimizer.weight_decay": "wd l2",
    "optimizer.final_weight_decay": "weight_decay_end wd_end",
    "optimizer.warmup_epochs": "warmup warmup_ratio num_warmup_epochs",
    "optimizer.warmup_steps": "num_warmup_steps",
    "optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2 opt_betas",
    "optimizer.eps": "opt_eps adam_epsilon epsilon",
    "optimizer.clip_grad": "grad_clip gradient_clipping max_grad_norm max_norm",
    "train.global_batch_size": "batch_size batch bs train_batch_size total_batch_size",
    "train.micro_batch_size": "per_device_train_batch_size per_device_batch_size per_gpu_batch_size "
    "train_micro_batch_size_per_gpu grad_accum_steps gradient_accumulation_steps accum_iter update_freq",
    "train.epochs": "num_epochs num_train_epochs max_epochs n_epochs",
    "train.steps": "num_steps max_steps total_steps iterations max_iters",
    "train.seed": "random_seed",
    "train.precision": "fp16 bf16 amp mixed_precision dtype",
    "train.ema_decay": "ema model_ema model_ema_decay",
    "train.early_stop_evals": "patience early_stopping early_stopping_patience",
    "train.log_interval_steps": "logging_steps log_interval log_every",
    "train.eval_interval_steps": "eval_steps eval_interval eval_every",
    "checkpoint.interval_steps": "save_steps save_interval save_ckpt_freq",
    "checkpoint.keep": "save_total_limit",
    "reader.num_workers": "workers dataloader_num_workers",
    "reader.prefetch_batches": "prefetch_factor",
    "model.size": "model model_name arch",
    "model.embed_dim": "width dim hidden_size",
    "model.depth": "layers num_layers num_hidden_layers",
    "model.num_heads": "heads num_attention_heads",
    "model.init_values": "layer_scale_init_value",
    "model.drop_path": "drop_path_rate stochastic_depth",
    "model.use_abs_pos_emb": "abs_pos_emb use_absolute_position_embeddings",
    "model.pos_bias": "rel_pos_bias shared_rel_pos_bias use_shared_relative_position_bias",
    "mask.num_masked": "num_mask_patches mask_ratio mask_prob",
    "mask.min_block": "min_mask_patches_per_block",
    "layer_decay": "layer_decay_rate llrd layer_wise_lr_decay",
    "freeze_blocks": "freeze num_frozen_blocks",
    "adapt": "lora lora_r lora_rank peft trainable_layers",
    "image.img_size": "input_size image_size resolution",
    "classifier.label_smoothing": "smoothing",
    "mix.mixup_alpha": "mixup",
    "mix.cutmix_alpha": "cutmix",
    "mix.prob": "mixup_prob",
    "mix.switch_prob": "mixup_switch_prob",
    "augment.rand_augment": "aa auto_augment randaugment",
    "augment.erase_prob": "reprob random_erasing",
    "augment.flip": "hflip",
    "augment.scale": "crop_scale",
    "augment.max_class_share": "cat_max_ratio",
    "optimizer.power": "poly_power",
    "head.kind": "decode_head decoder segmentation_head",
    "head.blocks": "out_indices",
    "head.channels": "decoder_channels",
    "evaluation.mode": "test_cfg",
    "data.reduce_zero_label": "reduce_labels do_reduce_labels reduce_zero",
    "data.ignore": "ignore_index seg_pad_val",
    "data.classes": "palette label_map",
    "data.class_names": "nb_classes num_classes",
    "evaluation.crop_pct": "crop_ratio",
    "speed.activation_checkpointing": "gradient_checkpointing use_checkpoint",
    "speed.compile": "torch_compile",
    "deepspeed.zero_stage": "zero",
    "run.wandb": "wandb",
    "views": "num_views",
    "model.vocab_size": "codebook_size num_tokens vocab",
}
"""What settings are called in timm, in Hugging Face's trainer, in BEiT's own code and by habit, and here."""
MEANT = {word: setting for setting, words in _ALSO_CALLED.items() for word in words.split()}
_ELSEWHERE = {"image.img_size": ("img_size", "data.view_size"), "train.seed": ("seed",), "train.precision": ("dtype",)}
"""What some of them are where a command has no such section."""
_MEANT_VALUES = {
    **{"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"},
    **{"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"},
    **{"block": "blockwise", "avg": "mean", "average": "mean", "gap": "mean", "token": "cls", "gpu": "cuda"},
}
"""What values are called elsewhere."""
RETIRED = {"augment.repeats": 1}
"""Settings that are gone, with the value that asked for what is done now; files of older runs may still state it."""


_RECIPES_OF = {
    "pretrain": "beit pretrain",
    "finetune": "beit finetune classification",
    "finetune/segmentation": "beit finetune segmentation",
    "tokenize": "beit tokenizer train",
}
"""Whose recipes lie in which folder of the package."""


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
        values, origin = read_toml(path), str(path)
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
    raise InputError(_no_recipe(str(recipe), recipe_dir))


def _no_recipe(recipe: str, recipe_dir: Path) -> str:
    """Say what is wrong with a recipe that is not there: of another command, misspelt, or unknown."""
    names = sorted(file.stem for file in recipe_dir.glob("*.toml"))
    wanted = recipe.rpartition("/")[2].removesuffix(".toml")  # Hugging Face's names have an owner
    for stage, command in _RECIPES_OF.items():
        folder = Path(__file__).parents[1] / stage / "recipes"
        if folder != recipe_dir and wanted not in names and (folder / f"{wanted}.toml").is_file():
            here = f"the recipes here: {', '.join(names)}" if names else "this command has no recipes"
            return f"{wanted} is a recipe of {command}, not of this command; {here}"
    meant = nearest(wanted, names)
    if meant is None:  # most that people try is the beginning of a name: beit_tiny, tiny
        begins = [name for name in names if wanted.lower().replace("-", "_") in name]
        meant = begins[0] if begins else None
    hint = f"did you mean {meant}?" if meant else f"shipped are {', '.join(names) or 'none'}"
    return f"recipe {recipe!r} is neither a file nor a shipped recipe; {hint}"


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


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as nested plain values."""
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
        hint = did_you_mean(str(value), map(str, options), _MEANT_VALUES)
        raise InputError(f"{name} ({value!r}) in {where.origin} must be one of {', '.join(map(repr, options))}{hint}")
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
    key = find_key(name, keys)
    hint = f"did you mean {key!r}?" if key is not None else f"valid keys: {', '.join(keys)}"
    return f"unknown key {name!r} in {where.origin}; {hint}"


def find_key(name: str, keys: Sequence[str]) -> str | None:
    """Return the setting that somebody means by `name`: by its last part, its meaning elsewhere, or its letters."""
    leaf = name.lower().replace("-", "_").rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == leaf]
    if same:
        return same[0]
    meant = MEANT.get(leaf, "")
    found = next((key for key in (meant, *_ELSEWHERE.get(meant, ())) if key in keys), None)
    if found is None and meant:  # sections differ between commands
        found = next((key for key in keys if key.rpartition(".")[2] == meant.rpartition(".")[2]), None)
    if found is None:
        found = nearest(name, keys)
    if found is None:
        last = nearest(leaf, [key.rpartition(".")[2] for key in keys])
        found = next((key for key in keys if key.rpartition(".")[2] == last), None)
    return found

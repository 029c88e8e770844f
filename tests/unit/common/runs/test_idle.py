"""Settings without effect say so in one line, whoever set them; those that have one, or are as by default, do not."""

import logging

import pytest

from beit.common.config import load_config
from beit.common.processes.signals import LAUNCHER_PID_VARIABLE
from beit.common.runs.idle import idle_lines, training_needs, warn_of_idle, warn_of_overruled, warn_of_unused
from beit.finetune import config as finetune
from beit.finetune.commands import RECIPES as FINETUNE_RECIPES
from beit.finetune.commands import SEGMENTATION_RECIPES
from beit.finetune.segmentation import config as segmentation
from beit.pretrain import config as pretrain
from beit.pretrain.commands import RECIPES
from beit.tokenize import config as tokenize
from beit.tokenize.commands import RECIPES as TOKENIZER_RECIPES
from beit.tokenize.distillation import config as distillation
from beit.tokenize.tokenizer_training.config import TokenizerTrainConfig


def load(schema, *overrides, recipe=None):
    return load_config(schema, recipe=recipe, overrides=overrides, recipe_dir=RECIPES)


def said(schema, needs, *overrides, **more):
    config = load(schema, *overrides)
    lines = idle_lines(config, needs(config, **more))
    assert all("\n" not in line and " has no effect " in line for line in lines)
    return lines


def of_pretraining(*overrides, has_position_tables=True):
    return said(pretrain.PretrainConfig, pretrain.needs, *overrides, has_position_tables=has_position_tables)


@pytest.mark.parametrize(
    ("setting", "beside"),
    [
        ("weights=scaled", "init=encoder"),
        ("mask.num_masked=9", "mask.mode=algorithm1"),
        ("mask.min_block=9", "mask.mode=random"),
        ("mask.exact=true", "mask.mode=random"),
        ("mask.min_aspect=0.5", "mask.mode=algorithm1"),
        ("mask.max_attempts=3", "mask.mode=random"),
        ("objective.normalize_patches=false", "objective.kind=all_tokens"),
        ("tokenizer.dtype=float16", "tokenizer.online=none"),
        ("tokenizer.compile_encoder=on", "tokenizer.online=none"),
        ("probe.label_column=kind", "probe.data=none"),
        ("optimizer.power=2", "optimizer.schedule=cosine"),
    ],
)
def test_a_setting_of_pretraining_that_another_makes_idle_is_named_with_its_value(setting, beside):
    name, _, value = setting.partition("=")
    (line,) = of_pretraining(setting, beside)
    assert line.startswith(f"{name} ({value}) has no effect ") or line.startswith(f"{name} ({float(value)}) ")


def test_what_has_an_effect_or_is_as_by_default_is_not_spoken_of():
    assert not of_pretraining()
    assert not of_pretraining("mask.mode=random", "init=encoder", has_position_tables=False)
    assert not of_pretraining("weights=scaled", "position_lr_scale=5", "mask.num_masked=9", "mask.exact=true")
    assert not of_pretraining("optimizer.power=2", "optimizer.schedule=poly")
    for recipe in RECIPES.glob("*.toml"):
        config = load(pretrain.PretrainConfig, recipe=recipe.stem)
        assert not idle_lines(config, pretrain.needs(config, has_position_tables=True)), recipe


@pytest.mark.parametrize(
    ("schema", "needs", "recipes", "pattern", "more"),
    [
        (finetune.FinetuneConfig, finetune.needs, FINETUNE_RECIPES, "*", ("data.val=val",)),
        (segmentation.SegmentationConfig, segmentation.needs, SEGMENTATION_RECIPES, "*", ()),
        (distillation.DistillationConfig, distillation.needs, TOKENIZER_RECIPES, "vqkd_*", ()),
        (TokenizerTrainConfig, training_needs, TOKENIZER_RECIPES, "tokenizer_*", ()),
    ],
)
def test_no_shipped_recipe_sets_what_has_no_effect(schema, needs, recipes, pattern, more):
    names = [file.stem for file in recipes.glob(f"{pattern}.toml")]
    assert names
    for name in names:
        config = load_config(schema, recipe=name, overrides=more, recipe_dir=recipes)
        assert not idle_lines(config, needs(config)), name


def test_a_rate_of_position_tables_needs_tables():
    (line,) = of_pretraining("position_lr_scale=5", has_position_tables=False)
    assert line.startswith("position_lr_scale (5.0) has no effect where no relative position tables are trained")


@pytest.mark.parametrize(
    ("schema", "needs", "settings"),
    [
        (finetune.FinetuneConfig, finetune.needs, ["mix.switch_prob=0.2", "mix.cutmix_alpha=0"]),
        (finetune.FinetuneConfig, finetune.needs, ["data.subset_seed=3"]),
        (finetune.FinetuneConfig, finetune.needs, ["data.num_val_images=30"]),
        (segmentation.SegmentationConfig, segmentation.needs, ["head.channels=64", "head.kind=linear"]),
        (segmentation.SegmentationConfig, segmentation.needs, ["head.norm=group"]),
        (segmentation.SegmentationConfig, segmentation.needs, ["head.auxiliary_weight=0.1", "head.kind=fpn"]),
        (segmentation.SegmentationConfig, segmentation.needs, ["evaluation.stride=8", "evaluation.mode=whole"]),
        (
            distillation.DistillationConfig,
            distillation.needs,
            ["objective.restart_fraction=0.5", "objective.restart_threshold=0"],
        ),
        (tokenize.TokenizeConfig, tokenize.needs, ["tokenizer=dall-e", "views=0"]),
        (tokenize.TokenizeConfig, tokenize.needs, ["worker_timeout_seconds=9", "worker_processes=off"]),
    ],
)
def test_settings_of_the_other_commands_are_looked_at_too(schema, needs, settings):
    (line,) = said(schema, needs, *settings)
    assert line.startswith(f"{settings[0].partition('=')[0]} (")
    assert not said(schema, needs)


def test_epochs_given_beside_steps_are_named_with_the_way_out(caplog, monkeypatch):
    monkeypatch.delenv(LAUNCHER_PID_VARIABLE, raising=False)
    config = load(pretrain.PretrainConfig, "train.epochs=2", "train.steps=7")
    warn_of_overruled(config, ["train.epochs=2", "train.steps=7"])
    assert caplog.messages == [
        "--set train.epochs has no effect beside train.steps (7); add --set train.steps=none, or leave it out"
    ]
    caplog.clear()
    warn_of_overruled(config, ["train.steps=7"])  # the epochs are a recipe's or the default
    warn_of_overruled(load(tokenize.TokenizeConfig), ["train.epochs=2"])
    assert not caplog.messages


def test_settings_that_a_task_never_looks_at_are_named(caplog):
    warn_of_unused(
        ["optimizer.lr=1", "probe.l2=1", "layer_decay=1", "train.seed=1", "run.report=false"],
        ("optimizer.", "train.", "run."),
        "knn",
    )
    assert caplog.messages == ["--set optimizer.lr has no effect on knn; leave it out"]


def test_of_several_ranks_the_first_one_says_it(caplog, monkeypatch):
    config = load(finetune.FinetuneConfig, "data.subset_seed=3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with caplog.at_level(logging.WARNING):
        for rank in "10":
            monkeypatch.setenv("RANK", rank)
            warn_of_idle(config, finetune.needs(config))
    assert len(caplog.messages) == 1

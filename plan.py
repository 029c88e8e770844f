"""`beit plan`: what tokenising, pre-training and fine-tuning of so many images will take, before anything is begun.

Here: the command, and what it asks of the stages, each through its module `forecast`, and through `rates` where this
machine is to be measured. Not here: how a plan looks and what it advises (`common/overview/plan/`), and any arithmetic
of a stage.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click

import beit.finetune.forecast as finetuning
import beit.pretrain.forecast as pretraining
import beit.tokenize.forecast as tokenizing
from beit.common.config import config_to_dict, find_recipe
from beit.common.errors import require
from beit.common.forecast.hardware import Hardware
from beit.common.forecast.rules import Problem
from beit.common.forecast.starting import import_seconds, training_start
from beit.common.forecast.training import TrainingForecast
from beit.common.overview.plan.advice import Training, advise
from beit.common.overview.plan.amounts import parse_count
from beit.common.overview.plan.assumptions import about_hardware, about_images, about_labels
from beit.common.overview.plan.choice import Case, finetune_recipe, pretrain_recipe, store_settings
from beit.common.overview.plan.document import MemoryRow, Plan, Stage
from beit.common.overview.plan.question import Question
from beit.common.overview.plan.rates import Rates
from beit.common.overview.plan.rules import (
    disk_problem,
    held_out_problem,
    idle_ranks_problem,
    loader_problem,
    precision_problem,
)
from beit.common.overview.plan.source import Found, look_at, only_counted, sample_images
from beit.common.overview.plan.stages import length_words, memory_rows, store_stage, training_stage, views_words
from beit.common.overview.plan.typed import STORE, finetune_command, pretrain_command, tokenize_command
from beit.common.overview.quiet import saying_only
from beit.common.pages.numbers import count
from beit.common.vit.config import ViTConfig

CLASSES = 100
"""Of a fine-tuning, where nobody says: the head is small beside any encoder."""
VALIDATED = 0.2
"""For each labelled image to train on, those taken to be there to validate on."""
_VOCABULARY = 8192
"""Words of a tokenizer that only loading it would count: BEiT's."""
_MEASURED_AT_ONCE = 32
"""Images per micro-batch that is timed, fewer where one takes long; more are hardly quicker on a processor."""
_MEASURED_SECONDS = 8.0
"""That each of two measurements may take: with starting, under a minute in all."""


@click.command("plan")
@click.argument("images", metavar="SOURCE|STORE|COUNT")
@click.option("--recipe", metavar="NAME|FILE", help="Of the pre-training.  [default: what is advised]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of beit pretrain; as tokenize.KEY=VALUE one of beit tokenize, as finetune.KEY=VALUE one of "
    "beit finetune. May be given several times.",
)
@click.option("--views", type=click.IntRange(min=0), metavar="K", help="Views per image.  [default: the recipe's]")
@click.option("--labels", metavar="N", help="Labelled images to fine-tune on.")
@click.option("--gpus", type=click.IntRange(min=1), metavar="N", help="Ranks on each machine, as for beit pretrain.")
@click.option("--machines", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="All alike.")
@click.option("--gpu", metavar="NAME", help="Kind of GPU, such as A100 or V100-16GB.  [default: this machine]")
@click.option("--measure", is_flag=True, help="Measure how fast this machine is, in under a minute.")
@click.option(
    "--json",
    "listing",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="F.json",
    help="Also write all numbers here; - writes them to the terminal instead of the table.",
)
def plan_command(listing: Path | None, **options: Any) -> None:
    """Say what will happen: time, memory and disk of every stage, what would fail, what is advised.

    SOURCE is what beit tokenize takes, STORE a token store that is there, COUNT a number of images, such as 50k or
    1.28M. Nothing is written or trained. beit tokenize, pretrain and finetune go by the same numbers before they start.
    Exits with 1 if one of them would refuse or fail.

    \b
    Examples:
      beit plan photos/ --labels 300
      beit plan 14M --gpu A100 --gpus 8 --machines 8 --recipe beit_base_patch16_224_22k
    """
    from beit.common.overview.plan.text import plan_text
    from beit.common.runs.outputs import check_outputs
    from beit.common.storage.documents import json_bytes
    from beit.common.storage.files import write_output

    is_table = str(listing) != "-"
    check_outputs({"--json": listing if is_table else None}, inputs=[options["images"]], makes_folder=True)
    plan = answer(Question(**options))
    document = json_bytes(plan.to_json())
    click.echo(plan_text(plan) if is_table else document.decode().rstrip())
    if listing is not None and is_table:
        write_output(listing, document)
    if not plan.is_possible:
        raise click.exceptions.Exit(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Store:
    """A token store, there already or to be made, as a pre-training sees it."""

    num_images: int
    num_held_out: int
    num_shards: int
    img_size: int
    patch_size: int
    vocab_size: int
    views: int
    is_materialized: bool
    megapixels: float
    is_vocabulary_assumed: bool = False


def answer(question: Question) -> Plan:
    """Ask every stage what it will take, and put the answers together."""
    hardware, number = question.hardware(), parse_count(question.images)
    found = look_at(question.images, **question.looking) if number is None else only_counted(number)
    case = Case(
        num_images=found.images.count,
        num_labels=question.num_labels,
        has_gpu=hardware.device == "cuda",
        side_px=found.images.side_px if found.store is None else found.store.img_size,
    )
    given = question.settings("finetune")
    require(not given or case.num_labels is not None, f"finetune.{given and given[0]} needs --labels N; give it, too")
    recipe, reason = (question.recipe, "") if question.recipe else pretrain_recipe(case)
    config = pretraining.load(recipe, question.settings("pretrain"))
    settings = _store_settings(question, recipe, config, found)
    tokens = tokenizing.load(overrides=settings)
    rates = _measured(question, found, tokens, config) if question.measure else None
    store, made = _store(found, tokens, hardware, rates)
    trained = _Pretraining(config=config, store=store, hardware=hardware, rates=rates)
    tuned = None
    if case.num_labels is not None:
        tuned = _Finetuning(num_labels=case.num_labels, settings=given, case=case, pretraining=trained)
    stages = tuple(
        stage for stage in (made, trained.stage(), None if tuned is None else tuned.stage()) if stage is not None
    )
    return Plan(
        images=found.images,
        num_labels=question.num_labels,
        hardware=trained.forecast.hardware,
        recipe=recipe,
        recipe_reason=reason,
        stages=stages,
        memory=trained.memory(),
        micro_batch_size=trained.forecast.micro_batch_size,
        zero_stage=config.deepspeed.zero_stage,
        problems=_problems(question, stages, trained, tuned),
        advice=advise(case, _for_advice(trained, stages)),
        commands=_commands(question, recipe, settings, found, trained, tuned),
        assumptions=_assumptions(question, found, trained, tuned),
    )


def _store_settings(question: Question, recipe: str, config: pretraining.PretrainConfig, found: Found) -> list[str]:
    """Return the settings of `beit tokenize` as KEY=VALUE: what the recipe's header names, then what was asked for."""
    asked = question.settings("tokenize") + ([] if question.views is None else [f"views={question.views}"])
    if found.store is not None:
        require(
            not asked, f"{question.images} is a token store, so nothing is tokenised; leave {asked and asked[0]} out"
        )
        return []
    settings = store_settings(find_recipe(recipe, pretraining.RECIPES).read_text(encoding="utf-8"))
    if not settings and config.data.made_for is not None:
        sides = zip(("img_size", "patch_size"), config.data.made_for, strict=True)
        settings = [f"{name}={side}" for name, side in sides]
    if any(word == "views=0" or word.startswith("short_side=") for word in asked):  # which exclude crops
        settings = [word for word in settings if word != "materialize=true"]
    header = next((int(word.removeprefix("views=")) for word in settings if word.startswith("views=")), None)
    if header is not None and not any(word.startswith("views=") for word in asked):
        train, images = config.train, found.images.count
        passes = train.epochs if train.steps is None else train.steps * train.global_batch_size / images
        settings.append(f"views={max(1, min(header, math.ceil(passes)))}")  # what no pass reaches is made for nothing
    return [*settings, *asked]


def _measured(
    question: Question, found: Found, tokens: tokenizing.TokenizeConfig, config: pretraining.PretrainConfig
) -> Rates:
    """Measure this machine on a few of the images, or on generated ones, in a folder that is removed again."""
    began = time.monotonic()
    from beit.pretrain.rates import measure_training  # which bring torch
    from beit.tokenize.rates import measure_tokenizing

    imported = time.monotonic() - began
    sample = [] if found.kind in ("", "store") else sample_images(question.images)
    if found.store is not None:
        info = found.store
        sides = [f"img_size={info.img_size}", f"patch_size={info.patch_size}", f"views={min(2, info.views)}"]
        tokens = tokenizing.load(overrides=sides)
    with saying_only(logging.ERROR), tempfile.TemporaryDirectory(prefix="beit-plan-") as folder:
        views = measure_tokenizing(tokens, sample, Path(folder), seconds=_MEASURED_SECONDS)
        trained = measure_training(
            config, Path(folder) / "store", micro_batch_size=_MEASURED_AT_ONCE, seconds=_MEASURED_SECONDS
        )
    return Rates(
        flops=trained.flops_per_second,
        update_seconds=trained.update_seconds,
        reading_seconds=1 / trained.views_per_core_second,
        views_per_second=None if found.store is not None else views.views_per_second,
        image_bytes=views.image_bytes if sample and tokens.stored_quality is not None else None,
        import_seconds=imported,
        took_seconds=time.monotonic() - began,
    )


def _store(
    found: Found, config: tokenizing.TokenizeConfig, hardware: Hardware, rates: Rates | None
) -> tuple[_Store, Stage | None]:
    """Return the store, and the stage that makes it unless it is there."""
    images, info = found.images, found.store
    if info is not None:
        assert found.num_held_out is not None
        there = _Store(
            num_images=images.count,
            num_held_out=found.num_held_out,
            num_shards=found.num_shards,
            img_size=info.img_size,
            patch_size=info.patch_size,
            vocab_size=0 if info.tokenizer is None else info.tokenizer.vocab_size,
            views=info.views,
            is_materialized=info.is_materialized,
            megapixels=images.megapixels,
        )
        return there, None
    forecast = tokenizing.forecast(
        config,
        num_images=images.count,
        hardware=hardware,
        mean_bytes=images.mean_bytes,
        megapixels=images.megapixels,
        is_packed=found.kind != "tar",
        num_shards=found.num_shards or None,
        pixels_at_once=images.pixels_at_once,
    )
    if rates is not None and (rate := rates.views_on(hardware)):
        forecast = replace(forecast, views_per_second=rate, seconds=images.count * config.views / rate)
    if rates is not None and (each := rates.image_bytes) is not None:
        forecast = replace(forecast, image_bytes=round(images.count * each))
    shrunk = config.short_side**2 * 4 / 3 / 1e6 if config.short_side else math.inf
    made = _Store(
        num_images=images.count,
        num_held_out=forecast.num_held_out,
        num_shards=forecast.num_shards,
        img_size=config.img_size,
        patch_size=config.patch_size,
        vocab_size=forecast.vocab_size or _VOCABULARY,
        views=config.views,
        is_materialized=config.materialize,
        megapixels=min(images.megapixels, shrunk),
        is_vocabulary_assumed=forecast.vocab_size is None,
    )
    source = rates.source if rates is not None else forecast.hardware.flops_source
    stage = store_stage(
        config,
        forecast,
        words=forecast.vocab_size,
        source=source,
        total_bytes=found.total_bytes,
        start_seconds=import_seconds(hardware, None if rates is None else rates.import_seconds),
        num_ranks=hardware.devices_per_machine,
        num_machines=hardware.num_machines,
        settings=config_to_dict(config),
    )
    return made, stage


@dataclass(kw_only=True)
class _Pretraining:
    """The pre-training of a plan."""

    config: pretraining.PretrainConfig
    store: _Store
    hardware: Hardware
    rates: Rates | None

    def asked(self, config: pretraining.PretrainConfig) -> TrainingForecast:
        """Return the forecast of other settings on the same store."""
        store = self.store
        return pretraining.forecast(
            config,
            num_images=max(1, store.num_images - store.num_held_out),
            img_size=store.img_size,
            patch_size=store.patch_size,
            vocab_size=store.vocab_size,
            views=store.views,
            num_shards=store.num_shards,
            num_held_out=store.num_held_out,
            hardware=self.hardware,
            stored_megapixels=store.megapixels,
            is_materialized=store.is_materialized,
        )

    @cached_property
    def forecast(self) -> TrainingForecast:
        """What it takes, as measured if it was."""
        found = self.asked(self.config)
        return found if self.rates is None else self.rates.of(found, num_workers=self.config.reader.num_workers)

    @property
    def start_seconds(self) -> float:
        """Of a command that trains, besides its steps and evaluations."""
        return training_start(import_seconds(self.hardware, None if self.rates is None else self.rates.import_seconds))

    @cached_property
    def shape(self) -> ViTConfig:
        """Of the encoder."""
        start = pretraining.starting_shape(self.config, img_size=self.store.img_size, patch_size=self.store.patch_size)
        return start.shape

    def memory(self) -> tuple[MemoryRow, ...]:
        """Return the table of memory; stages of ZeRO are apart only where there are ranks to share among."""
        config, ranks = self.config, self.hardware.num_devices

        def at(size: int, stage: int) -> float:
            # A step of one micro-batch: whatever the batch is divided into, the memory is the same.
            train = replace(config.train, micro_batch_size=size, global_batch_size=size * ranks, steps=1)
            optimizer = replace(config.optimizer, warmup_steps=None)
            deepspeed = replace(config.deepspeed, zero_stage=stage)  # type: ignore[arg-type]  # 0 to 3
            return self.asked(replace(config, train=train, optimizer=optimizer, deepspeed=deepspeed)).memory.total

        planned = config.deepspeed.zero_stage
        if config.optimizer.kind == "muon" or self.hardware.num_devices == 1:
            return memory_rows(self.forecast, [planned], at)
        return memory_rows(self.forecast, [0, 1, 2, 3], at)

    def stage(self) -> Stage:
        """Return it as a stage of the plan."""
        store, found = self.store, self.forecast
        reuse = found.epochs / store.views if store.views else None
        first = [
            ("network", f"{self.shape.name}, {found.model.parameters / 1e6:.3g} M parameters with what predicts"),
            (
                "images",
                f"{count(store.num_images - store.num_held_out)} to train on, {count(store.num_held_out)} held out",
            ),
            ("length", length_words(found)),
            (
                "views",
                "a fresh one every time" if reuse is None else views_words(store.views, reuse),
            ),
        ]
        numbers: dict[str, Any] = {
            "num_trained": store.num_images - store.num_held_out,
            "num_held_out": store.num_held_out,
        }
        numbers |= {"view_reuse": reuse, "settings": config_to_dict(self.config)}
        return training_stage("pretrain", found, start_seconds=self.start_seconds, first=first, numbers=numbers)


@dataclass(kw_only=True)
class _Finetuning:
    """The fine-tuning of a plan, of the encoder that it pre-trains."""

    num_labels: int
    settings: Sequence[str]
    case: Case
    pretraining: _Pretraining

    @cached_property
    def recipe(self) -> str:
        """By the number of labels."""
        return finetune_recipe(self.case, patch_size=self.pretraining.store.patch_size)

    @cached_property
    def config(self) -> finetuning.FinetuneConfig:
        """Settings."""
        return finetuning.load(self.recipe, self.settings)

    @property
    def num_val(self) -> int:
        """Images to validate on."""
        return self.config.data.num_val_images or max(1, round(VALIDATED * self.num_labels))

    @cached_property
    def forecast(self) -> TrainingForecast:
        """What it takes."""
        before, image = self.pretraining, self.config.image
        shape = replace(
            before.shape,
            img_size=image.img_size or before.shape.img_size,
            pos_bias="none" if before.shape.pos_bias == "none" else "per_block",
            use_mask_token=False,
            final_norm=False,
            init="finetune",
        )
        hardware = before.hardware if before.rates is None else before.rates.on(before.hardware)
        return finetuning.forecast(
            self.config,
            num_images=self.num_labels,
            num_classes=CLASSES,
            num_val=self.num_val,
            hardware=hardware,
            shape=shape,
        )

    def stage(self) -> Stage:
        """Return it as a stage of the plan."""
        first = [
            ("recipe", f"{self.recipe}, to {CLASSES} classes, validated on {count(self.num_val, 'image')}"),
            ("length", length_words(self.forecast)),
        ]
        numbers: dict[str, Any] = {"recipe": self.recipe, "num_classes": CLASSES, "num_val_images": self.num_val}
        numbers |= {"settings": config_to_dict(self.config)}
        seconds = self.pretraining.start_seconds
        return training_stage("finetune", self.forecast, start_seconds=seconds, first=first, numbers=numbers)


def _problems(
    question: Question, stages: Sequence[Stage], trained: _Pretraining, tuned: _Finetuning | None
) -> tuple[Problem, ...]:
    """Return all rules that are broken, those that stop a command first."""
    store, config, hardware = trained.store, trained.config, trained.forecast.hardware
    found: list[Problem | None] = [
        held_out_problem(store.num_images, store.num_held_out),
        *trained.forecast.problems,
        loader_problem(trained.forecast, config.reader.num_workers),
        precision_problem(hardware, config.train.precision),
    ]
    if stages[0].name == "tokenize":
        found.append(idle_ranks_problem(store.num_shards, hardware.num_devices))
    if question.gpu is None:  # of another machine's disk nothing is known
        found.append(disk_problem(sum(stage.disk_bytes for stage in stages), Path()))
    if tuned is not None:
        found += [replace(problem, what=f"fine-tuning: {problem.what}") for problem in tuned.forecast.problems]
    problems = dict.fromkeys(problem for problem in found if problem is not None)
    return tuple(sorted(problems, key=lambda problem: not problem.is_fatal))


def _for_advice(trained: _Pretraining, stages: Sequence[Stage]) -> Training:
    forecast, made = trained.forecast, stages[0] if stages[0].name == "tokenize" else None
    seconds, share = forecast.total_seconds, None
    if made is not None and made.seconds is not None and seconds is not None:
        share = made.seconds / max(1e-9, made.seconds + seconds)
    return Training(
        steps=forecast.steps,
        batch=forecast.global_batch_size,
        epochs=forecast.epochs,
        views=trained.store.views,
        width=trained.shape.embed_dim,
        is_continued=trained.config.init is not None,
        tokenizer="" if made is None else str(made.numbers["settings"]["tokenizer"]),
        tokenize_share=share,
    )


def _commands(
    question: Question,
    recipe: str,
    settings: Sequence[str],
    found: Found,
    trained: _Pretraining,
    tuned: _Finetuning | None,
) -> tuple[str, ...]:
    """Return the commands that do what is planned, as one would type them."""
    ranks = None if trained.hardware.num_devices == 1 else trained.hardware.devices_per_machine
    machines = question.machines
    needs_encoder = recipe.startswith("continue_") and trained.config.init is None
    commands = []
    if found.store is None:
        commands.append(tokenize_command(found.images.name, settings, gpus=ranks))
    store = STORE if found.store is None else found.images.name
    given = question.settings("pretrain")
    commands.append(pretrain_command(store, recipe, given, gpus=ranks, machines=machines, init=needs_encoder))
    if tuned is not None:
        given = question.settings("finetune")
        commands.append(finetune_command(tuned.recipe, given, gpus=ranks, machines=machines))
    return tuple(commands)


def _assumptions(question: Question, found: Found, trained: _Pretraining, tuned: _Finetuning | None) -> tuple[str, ...]:
    """Return what the numbers rest on that nobody looked at or measured."""
    is_here, is_measured = question.gpu is None, trained.rates is not None
    said = about_images(found)
    said += about_hardware(trained.forecast.hardware, is_here=is_here, is_measured=is_measured)
    if tuned is not None:
        is_given = tuned.config.data.num_val_images is not None
        said += about_labels(num_classes=CLASSES, num_val=None if is_given else tuned.num_val)
    if trained.store.is_vocabulary_assumed:
        said.append(f"{_VOCABULARY} words of the tokenizer, which is not loaded for a plan")
    return tuple(said)

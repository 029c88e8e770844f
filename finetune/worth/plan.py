"""Which `beit` commands a comparison comes to: pre-trainings first, then the runs from each start."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

from beit.common.config import flatten
from beit.common.errors import require
from beit.common.runs.layout import CONFIG, ENCODER, EVALUATION, LAST, MODEL
from beit.common.sources.config import decoding_options
from beit.common.vit.description import CONFIG_FILE, EncoderConfig, find_encoder, read_encoder_config
from beit.finetune.config import RANDOM_ENCODER, FinetuneConfig
from beit.finetune.worth.comparison import CONTINUED, RANDOM, SCRATCH, WEIGHTS, Given, Matrix, Run
from beit.finetune.worth.runner import sets

Command = list[str]
_WIDE = 576
"""Channels from which on the recipe of the base model fits better than that of the small one; arbitrary."""
_RECIPES = {16: "beit_small_patch16_224", 8: "beit_mini_patch8_64", 4: "beit_tiny_patch4_32"}
"""Of pre-training from scratch, by the side of a patch; the shape is that of the weights."""
_BASE_RECIPE = "beit_base_patch16_224_1k"
_CONTINUE_RECIPES = ("continue_small_patch16_224", "continue_mini_patch8_64")
_WIDE_CONTINUE_RECIPE = "continue_base_patch16_224"
MADE_FOR = {
    **{name: (224, 16) for name in (_BASE_RECIPE, _WIDE_CONTINUE_RECIPE, _CONTINUE_RECIPES[0])},
    _CONTINUE_RECIPES[1]: (64, 8),
    **dict(zip(_RECIPES.values(), ((224, 16), (64, 8), (32, 4)), strict=True)),
}
"""Sides of view and patch, as the recipes themselves say in data.made_for."""
_SHAPE = ("embed_dim", "depth", "num_heads", "mlp_ratio", "init_values", "use_abs_pos_emb")
LATER = "<as continued>"
"""Stands for a number that is known once the encoder has been continued."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A comparison, ready to be written down as commands."""

    given: Given
    """Its options."""
    matrix: Matrix
    """Its runs."""
    config: FinetuneConfig
    """Settings of its fine-tunings, but for what differs between them."""
    img_size: int | None
    """Side of the images in pixels, the same for all starts; None where that is known only later."""
    patch_size: int | None
    """Of a patch; the same."""

    def encoder(self, start: str) -> Path | None:
        """Return the encoder of a start, or where it will be; None for random weights."""
        ready = {WEIGHTS: self.given.weights, CONTINUED: self.given.continued, SCRATCH: self.given.scratch}.get(start)
        return ready or (self.given.out / start if start in (CONTINUED, SCRATCH) else None)

    def to_pretrain(self) -> list[str]:
        """Return the starts that are pre-trained here, in this order."""
        ready = {CONTINUED: self.given.continued, SCRATCH: self.given.scratch}
        return [start for start, encoder in ready.items() if start in self.matrix.starts and encoder is None]

    def like(self) -> EncoderConfig | None:
        """Return the description of the encoder whose shape all starts have; None before there is any."""
        encoders = [self.encoder(start) for start in (WEIGHTS, CONTINUED, SCRATCH)]
        found = next((encoder for encoder in encoders if encoder is not None and is_encoder(encoder)), None)
        return None if found is None else read_encoder_config(found)

    def _like_before(self) -> EncoderConfig | None:
        """Return the same for a pre-training, whose command must not change by what it has made itself."""
        given = (self.given.weights, self.given.continued, self.given.scratch)
        found = next((encoder for encoder in given if encoder is not None), None)
        return None if found is None else read_encoder_config(found)

    def tokenize(self) -> Command | None:
        """Return the command that makes the store; None where it is there."""
        if self.given.images is None or not self.to_pretrain():
            return None
        size = ["--img-size", str(self.img_size), "--patch-size", str(self.patch_size)]
        return ["tokenize", self.given.images, str(self.given.pretrains_on), *size, "--views", str(self.given.views)]

    def pretrain(self, start: str) -> Command:
        """Return the command that continues the weights, or pre-trains from scratch."""
        given = self.given
        folder, store = given.out / start, str(given.pretrains_on)
        steps = [] if given.steps is None else [f"train.steps={given.steps}"]
        if start == CONTINUED:
            own = [*steps, *given.pretrain_settings, *given.continue_settings]
            words = ["--init", str(given.weights), "--recipe", self._recipe(start)]
        else:
            # As many steps of as many images as the other one has.
            budget = [*steps, *self._budget_of_continued(has_steps=bool(steps))]
            own = [*self._pretrained_shape(), *budget, *given.pretrain_settings, *given.scratch_settings]
            words = ["--recipe", self._recipe(start)]
        return ["pretrain", store, str(folder), *words, *sets(own), *self._ranks()]

    def _recipe(self, start: str) -> str:
        """Return the recipe of a pre-training: the one that is named, or what fits best."""
        given, like = self.given, self._like_before()
        if start == CONTINUED:
            return given.continue_recipe or continue_recipe(like, self.img_size)
        return given.scratch_recipe or scratch_recipe(like, self.patch_size)

    def unfit_recipes(self) -> list[str]:
        """Say of each pre-training for whose views and patches there is no recipe what is taken instead."""
        lines, here = [], (self.img_size, self.patch_size)
        named = {CONTINUED: self.given.continue_recipe, SCRATCH: self.given.scratch_recipe}
        for start in self.to_pretrain():
            recipe = self._recipe(start)
            made_for = MADE_FOR.get(recipe)
            if named[start] is None and None not in here and made_for not in (None, here):
                option = "continue-recipe" if start == CONTINUED else "scratch-recipe"
                lines.append(
                    f"{start}: no recipe is made for views of {here[0]} px in patches of {here[1]} px; {recipe} is "
                    f"taken, made for {made_for[0]} px in {made_for[1]} px; --{option} names another"  # type: ignore[index]
                )
        return lines

    def finetune(self, run: Run) -> list[Command]:
        """Return the commands of a run."""
        given, folder = self.given, str(run.folder(self.given.out))
        chosen = [f"train.seed={run.seed}"]
        if not run.labels.is_all:
            chosen += [f"data.num_labels={run.labels.number}", f"data.subset_seed={run.seed}"]
        if run.is_training and run.labels.epochs is not None:
            chosen.append(f"train.epochs={run.labels.epochs:g}")
        is_random = run.start == RANDOM
        own = [*self._shape(is_random), *given.settings, *(given.random_settings if is_random else ()), *chosen]
        encoder = str(self.encoder(run.start) or RANDOM_ENCODER)
        words = [given.labelled, folder, "--encoder", encoder, "--recipe", given.recipe]
        if not run.is_training:
            return [["finetune", task, *words, "--val", given.val, *sets(own)] for task in run.tasks]
        # Nothing is chosen on the images that are measured on: the weights of the last step are, once.
        training = ["finetune", *run.tasks, *words, *sets(own), *self._ranks()]
        last, out = str(run.folder(given.out) / LAST), str(run.folder(given.out) / EVALUATION)
        return [training, ["evaluate", last, given.val, "--out", out, *self._reading(), *self._ranks()]]

    def _reading(self) -> list[str]:
        """Return the options of `beit evaluate` for what a fine-tuning has settings for."""
        data, source = self.config.data, self.config.source
        named = {"--class-names": data.class_names, "--label-column": data.label_column}
        named |= {"--image-member": source.image_member}
        words = [word for option, value in named.items() if value is not None for word in (option, str(value))]
        return [*words, *decoding_options(source)]

    def _ranks(self) -> list[str]:
        return [] if self.given.gpus is None else ["--gpus", str(self.given.gpus)]

    def _shape(self, is_random: bool) -> list[str]:
        """Return the settings that give all starts one input size, and random weights the shape of the others."""
        size = [] if self.img_size is None else [f"image.img_size={self.img_size}"]
        like = self.like()
        if not is_random or like is None:
            return size
        scale = [f"image.{name}={list(getattr(like.normalization, name))}" for name in ("mean", "std")]
        has_bias = "none" if like.architecture.pos_bias == "none" else "shared"
        shape = [*_shape_of(like), f"model.pos_bias={has_bias}", f"image.patch_size={like.architecture.patch_size}"]
        return [*shape, *size, *scale]

    def _pretrained_shape(self) -> list[str]:
        """Return the settings that give a pre-training from scratch the shape of the weights; empty without any."""
        like = self._like_before()
        if like is None:
            return []
        scale = [f"data.{name}={list(getattr(like.normalization, name))}" for name in ("mean", "std")]
        tables = like.architecture.pos_bias
        # A recipe may have a rate for position tables, which would be told that it has no effect without any.
        idle = ["position_lr_scale=1"] if tables == "none" else []
        return [*_shape_of(like), f"model.pos_bias={tables}", *idle, *scale]

    def _budget_of_continued(self, *, has_steps: bool) -> list[str]:
        """Return the settings by which a pre-training takes as many steps of as many images as the continued one."""
        if CONTINUED not in self.matrix.starts:
            return []
        encoder = self.encoder(CONTINUED)
        assert encoder is not None
        steps, batch = budget_of(encoder)
        found = [] if has_steps else [f"train.steps={steps or LATER}"]
        if CONTINUED in self.to_pretrain():
            found.append(f"train.global_batch_size={batch or LATER}")
        elif batch is not None:
            found.append(f"train.global_batch_size={batch}")
        return found

    def require_budget(self) -> None:
        """Insist that a pre-training from scratch can be given as many steps as an encoder that was continued before.

        Only those of our own say how many they had.
        """
        if self.given.continued is None or SCRATCH not in self.to_pretrain() or self.given.steps is not None:
            return
        steps, _ = budget_of(self.given.continued)
        require(steps is not None, f"--continued {self.given.continued} does not say its steps; give --steps N")


def is_encoder(path: Path) -> bool:
    """Tell whether there is an encoder in a folder, or in the run directory that it is."""
    return any((folder / CONFIG_FILE).is_file() for folder in (path, path / MODEL, path / ENCODER))


def budget_of(encoder: Path) -> tuple[int | None, int | None]:
    """Return the steps of a finished pre-training and the images of each; None where it does not say, or is not yet."""
    if not is_encoder(encoder):
        return None, None
    folder = find_encoder(encoder)
    steps = read_encoder_config(folder, need_weights=False).provenance.get("total_steps")
    config = folder.parent / CONFIG
    batch = None
    if config.is_file():
        batch = flatten(tomllib.loads(config.read_text(encoding="utf-8"))).get("train.global_batch_size")
    return steps, batch


def continue_recipe(like: EncoderConfig | None, img_size: int | None) -> str:
    """Return the recipe that goes on from an encoder of this shape, on views of this size if that is known.

    For wide ones the base model's, whose rates they need; else the one made for the nearest sides of view and patch.
    """
    if like is None:
        return _CONTINUE_RECIPES[0]
    shape = like.architecture
    if shape.embed_dim >= _WIDE:
        return _WIDE_CONTINUE_RECIPE
    sides = img_size or shape.img_size, shape.patch_size

    def factor(recipe: str) -> float:
        return math.prod(max(one / two, two / one) for one, two in zip(sides, MADE_FOR[recipe], strict=True))

    return min(_CONTINUE_RECIPES, key=factor)


def scratch_recipe(like: EncoderConfig | None, patch_size: int | None) -> str:
    """Return the recipe of a pre-training from scratch for an encoder of this shape, or for patches of this size."""
    if like is not None and like.architecture.embed_dim >= _WIDE:
        return _BASE_RECIPE
    nearest = min(_RECIPES, key=lambda side: abs(side - (patch_size or 16)))
    return _RECIPES[nearest]


def _shape_of(like: EncoderConfig) -> list[str]:
    shape = like.architecture
    grey = ["model.in_chans=1"] if shape.in_chans == 1 else []
    return ["model.size=tiny", *(f"model.{name}={str(getattr(shape, name)).lower()}" for name in _SHAPE), *grey]

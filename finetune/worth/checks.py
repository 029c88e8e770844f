"""What is wrong with a comparison, in one line each, before anything is run or written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from beit.common.config import load_config
from beit.common.errors import InputError, require
from beit.common.runs.layout import CONFIG
from beit.common.runs.outputs import check_output_folder
from beit.common.sources.opening import open_source
from beit.common.sources.overlap import shared_images
from beit.common.storage.documents import Format, but_is, read_json, reading
from beit.common.storage.files import sha256_file
from beit.common.store import open_store
from beit.common.vit.agreement import require_shape
from beit.common.vit.description import WEIGHTS_FILE, EncoderConfig, find_encoder, read_encoder_config
from beit.finetune.artifact import starting_point
from beit.finetune.config import RANDOM_ENCODER, DataConfig, FinetuneConfig
from beit.finetune.data import LabelledData, open_training_data
from beit.finetune.masks.opening import holds_masks
from beit.finetune.worth.comparison import (
    CLASSIFICATION,
    CONTINUED,
    RANDOM,
    RUNS,
    SCRATCH,
    STORE,
    WEIGHTS,
    Given,
    Matrix,
    differing,
    identity_of,
    parse_labels,
    parse_starts,
    parse_tasks,
)
from beit.finetune.worth.plan import LATER, Plan
from beit.finetune.worth.results import RESULT_FILE
from beit.finetune.worth.runner import parse_seeds

FORMAT = Format("beit-worth", 1)
PLAN_FILE = "plan.json"
"""In OUT: what decides the comparison."""
_OWN = {
    "encoder": "the starts are",
    "data.val": "--val is",
    "data.num_labels": "--labels says it",
    "data.label_fraction": "--labels says it",
    "data.subset_seed": "--seeds says it",
    "data.num_val_images": "all images of --val are measured on",
    "train.seed": "--seeds says it",
}
"""Settings of a fine-tuning that this command chooses itself, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A comparison that can begin."""

    plan: Plan
    """Of it."""
    identity: dict[str, Any]
    """What decides it."""
    num_test_images: int
    """Images to measure on."""
    num_classes: int
    """Of the labels."""


def check(given: Given, *, starts: str | None, labels: str | None, seeds: str, tasks: str, recipes: Path) -> Checked:
    """Check a comparison and make its plan; the texts are those of the options of these names."""
    require(
        given.store is None or given.images is None,
        "--store and --images exclude each other; give the store, or images",
    )
    chosen, measured = parse_starts(starts, given), parse_tasks(tasks)
    numbers = tuple(dict.fromkeys(parse_seeds(seeds)))
    config = _settings(given, recipes)
    require(
        not config.classifier.multi_label or measured == (CLASSIFICATION,),
        "linear-probe and knn are of one class per image; with classifier.multi_label=true give --tasks classification",
    )
    inputs = [text for text in (given.labelled, given.val, given.images, given.store) if text is not None]
    _check_out(given, inputs)
    data = _open_data(given, config)
    counts = data.source.class_counts()
    found = parse_labels(labels, total=len(data.source), num_classes=int(np.count_nonzero(counts)))
    encoders = _check_encoders(given)
    img_size, patch_size = _geometry(given, config, encoders)
    _check_settings(given, chosen, config, encoders, recipes)
    matrix = Matrix(starts=chosen, labels=found, seeds=numbers, tasks=measured)
    plan = Plan(given=given, matrix=matrix, config=config, img_size=img_size, patch_size=patch_size)
    plan.require_budget()
    if plan.tokenize() is not None and not (Path(str(given.pretrains_on)) / RESULT_FILE).exists():
        open_source(str(given.images))
    assert data.val is not None
    sha256s = {start: sha256_file(find_encoder(folder) / WEIGHTS_FILE) for start, (folder, _) in encoders.items()}
    identity = identity_of(
        given, labelled_sha256=data.source.index_sha256, val_sha256=data.val.index_sha256, encoders=sha256s
    )
    identity = _agree(given.out, identity)
    _check_pretrainings(plan)
    return Checked(plan=plan, identity=identity, num_test_images=len(data.val), num_classes=len(data.class_names))


def _settings(given: Given, recipes: Path) -> FinetuneConfig:
    """Read the settings of the fine-tunings, those of random weights too."""
    for setting in (*given.settings, *given.random_settings):
        key = setting.partition("=")[0].strip()
        require(key not in _OWN, f"--set {setting}: {_OWN.get(key)} here; leave it out")
    for extra in (given.random_settings, ()):
        config = load_config(
            FinetuneConfig, recipe=given.recipe, overrides=[*given.settings, *extra], recipe_dir=recipes
        )
    return config


def _check_settings(
    given: Given,
    starts: tuple[str, ...],
    config: FinetuneConfig,
    encoders: dict[str, tuple[Path, EncoderConfig]],
    recipes: Path,
) -> None:
    """Refuse settings that a fine-tuning would refuse, which may come after hours of pre-training."""
    for path, _ in encoders.values():
        starting_point(replace(config, encoder=str(path)))
    if RANDOM not in starts:
        return
    own = [*given.settings, *given.random_settings]
    random = load_config(FinetuneConfig, recipe=given.recipe, overrides=own, recipe_dir=recipes)
    for path, stored in encoders.values():  # random weights have their shape
        require_shape(stored.architecture, random.model, str(path))
    try:
        starting_point(replace(random, encoder=RANDOM_ENCODER))
    except InputError as error:
        raise InputError(f"{error}; --random-set KEY=VALUE changes random weights only") from None


def _check_pretrainings(plan: Plan) -> None:
    """Have `beit pretrain` check what it will be given, so that no setting turns out wrong after hours of work."""
    for start in plan.to_pretrain():
        if (plan.given.out / start / RESULT_FILE).exists():
            continue
        words = plan.pretrain(start)
        folder = plan.given.out / start
        if any(LATER in word for word in words) and (folder / CONFIG).is_file():
            raise InputError(
                f"{folder} was begun with steps of its own, before there was a continued encoder whose budget it could "
                "have; finish without continued, name another OUT, or remove that folder"
            )
        words = [word.replace(LATER, "1") for word in words]
        command = [sys.executable, "-m", "beit.cli", *words, "--check"]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        if checked.returncode:
            said = checked.stderr.strip().splitlines() or [f"exit code {checked.returncode}"]
            raise InputError(f"pre-training of {start}: {said[-1].removeprefix('beit: ')}")


def _check_out(given: Given, inputs: list[str]) -> None:
    """Refuse a folder that cannot be made, lies in what is read, or is something else already."""
    out = given.out
    check_output_folder("OUT", out, inputs=inputs)
    if out.is_dir() and any(out.iterdir()) and not (out / PLAN_FILE).is_file():
        raise InputError(f"OUT ({out}) is not empty and was not made by beit worth{but_is(out)}; name another folder")


def _open_data(given: Given, config: FinetuneConfig) -> LabelledData:
    """Open what is learned from and what is measured on, which may share nothing."""
    for name, place in (("LABELLED", given.labelled), ("--val", given.val)):
        if holds_masks(place):
            raise InputError(
                f"{name} {place} holds masks; beit worth compares classifiers, so give images with a class"
            )
    settings = DataConfig(val=given.val, class_names=config.data.class_names, label_column=config.data.label_column)
    multi_label = config.classifier.multi_label
    data = open_training_data(given.labelled, settings, multi_label=multi_label, reading=config.source)
    assert data.val is not None
    shared = shared_images(data.source, data.val)
    require(not shared, shared)
    return data


def _check_encoders(given: Given) -> dict[str, tuple[Path, EncoderConfig]]:
    """Read the encoders that are there; they must be of one shape."""
    named = {WEIGHTS: given.weights, CONTINUED: given.continued, SCRATCH: given.scratch}
    found = {start: (path, read_encoder_config(path)) for start, path in named.items() if path is not None}
    shapes = {start: _shape(config) for start, (_, config) in found.items()}
    for start, shape in shapes.items():
        first = next(iter(shapes))
        require(
            shape == shapes[first],
            f"--{start} {found[start][0]} is another network than --{first} {found[first][0]}: embed_dim, depth, heads "
            f"and patch_size are {_in_words(shape)}, there {_in_words(shapes[first])}; compare encoders of one shape",
        )
    return found


def _shape(config: EncoderConfig) -> tuple[int, int, int, int]:
    found = config.architecture
    return found.embed_dim, found.depth, found.num_heads, found.patch_size


def _in_words(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _geometry(
    given: Given, config: FinetuneConfig, encoders: dict[str, tuple[Path, EncoderConfig]]
) -> tuple[int | None, int | None]:
    """Return the sides of images and patches, in pixels: those of the settings, of the store, or of the encoders."""
    like = next(iter(encoders.values()), None)
    patch_size = config.image.patch_size if like is None else like[1].architecture.patch_size
    img_size = config.image.img_size
    if given.store is not None:
        info = open_store(given.store).info
        if like is not None and patch_size != info.patch_size:
            raise InputError(
                f"--store {given.store} has patches of {info.patch_size} px and the encoder {like[0]} of {patch_size} "
                f"px; tokenize the images again with --patch-size {patch_size}, or give an encoder of that size"
            )
        patch_size, img_size = info.patch_size, img_size or info.img_size
    if like is not None:
        img_size = img_size or like[1].architecture.img_size
    if given.images is not None:
        img_size, patch_size = img_size or 224, patch_size or 16
    if img_size is not None and patch_size is not None and img_size % patch_size:
        raise InputError(f"image.img_size ({img_size}) must be a multiple of the patches of {patch_size} px")
    return img_size, patch_size


def _agree(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Refuse a folder with another comparison, saying what differs; return what decides all that is in it."""
    file = out / PLAN_FILE
    if not any((out / name).exists() for name in (RUNS, STORE, CONTINUED, SCRATCH)) or not file.is_file():
        return identity  # one of which nothing was made decides nothing
    with reading(file, way_out="name another OUT"):
        before = FORMAT.check(read_json(file), file)["identity"]
        others = differing(before, identity)
        if not others:
            return {**before, **identity, "encoders": {**before["encoders"], **identity["encoders"]}}
        key = others[0]
        if key in ("labelled", "val"):
            what = f"the images of {'LABELLED' if key == 'labelled' else '--val'} are others"
        elif key.startswith("encoders."):
            what = f"--{key.partition('.')[2]} is another encoder"
        elif key.endswith("-sha256"):
            option = key.removesuffix("-sha256")
            what = f"the file of --{option} has changed since"
        else:
            what = f"it had --{key} {_option(before[key])}, not {_option(identity[key])}"
    raise InputError(f"{out} holds another comparison: {what}; name another OUT, or remove it")


def _option(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "none" if value in (None, []) else text

"""The description of an encoder on disk, `config.json`; torch-free. The weights beside it are `common/encoder.py`'s.

Format: docs/encoder-format.md.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from beit.common.config import config_from_dict, config_to_dict
from beit.common.errors import InputError, require
from beit.common.images.decoding import GREY, RGB, USUAL, Decoding
from beit.common.storage.documents import Format, not_for_transformers, read_json
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.foreign import describe_foreign, describe_foreign_folder, import_command, is_foreign_config
from beit.common.vit.header import check_header

FORMAT = Format("beit-encoder", 1)
Task = Literal["pretrain", "classification", "segmentation"]
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """What `config.json` says about the weights beside it."""

    architecture: ViTConfig
    """Shape of the model that was trained."""
    normalization: Normalization
    """How its input pixels were normalised."""
    task: Task
    """What the head in the file is for."""
    vocab_size: int | None = None
    """Visual tokens of the pre-training head."""
    best_block: int | None = None
    """Block whose features classified best when the encoder was probed, counted from 0; what linear classifiers and
    k-NN should use unless told otherwise. None where it was not probed."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes of a classification head, in the order of its logits."""
    pooling: str | None = None
    """What a classification head sees: mean or cls."""
    multi_label: bool = False
    """Whether the classes do not exclude each other; each logit then has a sigmoid of its own."""
    crop_pct: float | None = None
    """Share of an image's short side that it was evaluated on; None where the usual one of its size was."""
    segmentation: dict[str, Any] | None = None
    """What a segmentation head is and how it is used, as fine-tuning writes it."""
    decoding: Decoding = USUAL
    """How the images were decoded that it was trained on, whatever their size."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: data and tokenizer fingerprints, steps, recipe, metrics, code version."""


def find_encoder(path: str | Path) -> Path:
    """Return the folder of an encoder given by itself or by the run directory around it."""
    given = Path(path)
    for directory in (given, given / "model", given / "encoder"):
        if (directory / CONFIG_FILE).is_file():
            return directory
    if (given / WEIGHTS_FILE).is_file():
        raise InputError(
            f"{given} has {WEIGHTS_FILE} but no {CONFIG_FILE}: writing it was interrupted; write it again. If somebody "
            f"else wrote it, run {import_command(given / WEIGHTS_FILE)}"
        )
    raise InputError(describe_foreign(given, CONFIG_FILE))


def read_encoder_config(path: str | Path, *, need_weights: bool = True) -> EncoderConfig:
    """Read the description of an encoder, or of the one in a run directory, as `encoder` or `model`.

    It is compared with the header of the weights, so that nothing is built by numbers that are not theirs.

    Args:
        path: Folder of the encoder, or the run directory.
        need_weights: False where nothing will be built, so that the weights may have been left behind.
    """
    file = find_encoder(path) / CONFIG_FILE
    found = read_json(file)
    if is_foreign_config(found):
        raise InputError(describe_foreign_folder(file.parent))
    value, origin = FORMAT.check(found, file), str(file)
    try:
        normalization = value["normalization"]
        architecture = config_from_dict(ViTConfig, value["architecture"], origin=origin)
        class_names = value.get("class_names")
        require(
            architecture.in_chans in (GREY, RGB),
            f"{origin}: in_chans ({architecture.in_chans}) must be 1 or 3: images are grey or RGB; give another one",
        )
        config = EncoderConfig(
            architecture=architecture,
            normalization=Normalization(tuple(normalization["mean"]), tuple(normalization["std"])),
            task=value["task"],
            vocab_size=value.get("vocab_size"),
            best_block=value.get("best_block"),
            class_names=None if class_names is None else tuple(class_names),
            pooling=value.get("pooling"),
            multi_label=value.get("multi_label", False),
            crop_pct=value.get("crop_pct"),
            segmentation=value.get("segmentation"),
            decoding=_decoding(value.get("decoding", {}), origin),
            provenance=value.get("provenance", {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{origin} is malformed ({error!r}); write the encoder again") from None
    _check(config, origin)
    if need_weights or file.with_name(WEIGHTS_FILE).exists():
        check_header(file.with_name(WEIGHTS_FILE), config.architecture)
    return config


def _decoding(value: Any, origin: str) -> Decoding:
    try:
        return Decoding.from_json(value).of_any_size()
    except InputError as error:
        raise InputError(f"{origin} is malformed ({error}); write the encoder again") from None


def _check(config: EncoderConfig, origin: str) -> None:
    """Refuse values that no version has written, before they are an index, a divisor or a text somewhere."""
    names, channels = config.class_names, config.architecture.in_chans
    numbers = [value for value in asdict(config.architecture).values() if isinstance(value, float)]
    facts = {
        "architecture": all(map(math.isfinite, numbers)),
        "mean": _are_numbers(config.normalization.mean, channels),
        "std": _are_numbers(config.normalization.std, channels) and min(config.normalization.std) > 0,
        "task": config.task in get_args(Task),
        "vocab_size": config.vocab_size is None or _is_count(config.vocab_size, 1),
        "best_block": config.best_block is None
        or (_is_count(config.best_block, 0) and config.best_block < config.architecture.depth),
        "class_names": names is None or (bool(names) and all(isinstance(name, str) for name in names)),
        "pooling": config.pooling is None or isinstance(config.pooling, str),
        "multi_label": isinstance(config.multi_label, bool),
        "crop_pct": config.crop_pct is None or (_are_numbers((config.crop_pct,), 1) and 0 < config.crop_pct <= 1),
        "segmentation": isinstance(config.segmentation, dict)
        if config.task == "segmentation"
        else config.segmentation is None,
        "provenance": isinstance(config.provenance, dict),
    }
    wrong = [name for name, is_right in facts.items() if not is_right]
    require(not wrong, f"{origin} is malformed ({', '.join(wrong)}); write the encoder again")


def _are_numbers(values: tuple[Any, ...], count: int) -> bool:
    return len(values) == count and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def encoder_config_to_json(config: EncoderConfig) -> dict[str, Any]:
    """Return what `config.json` holds."""
    return {
        **FORMAT.header(),
        **not_for_transformers("beit.common.encoder.load_encoder"),
        **{name: value for name, value in config_to_dict(replace(config, provenance={})).items() if name != "decoding"},
        "normalization": {"mean": list(config.normalization.mean), "std": list(config.normalization.std)},
        **({} if config.decoding == USUAL else {"decoding": config.decoding.as_json()}),
        "provenance": config.provenance,
    }

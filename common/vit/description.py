"""The description of an encoder on disk, `config.json`; torch-free. The weights beside it are `common/encoder.py`'s.

Format: docs/encoder-format.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from beit.common.config import config_from_dict, config_to_dict
from beit.common.errors import InputError, require
from beit.common.storage.documents import Format, not_for_transformers, read_json
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.foreign import describe_foreign, describe_foreign_folder, import_command, is_foreign_config

FORMAT = Format("beit-encoder", 1)
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """What `config.json` says about the weights beside it."""

    architecture: ViTConfig
    """Shape of the model that was trained."""
    normalization: Normalization
    """How its input pixels were normalised."""
    task: Literal["pretrain", "classification"]
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


def read_encoder_config(path: str | Path) -> EncoderConfig:
    """Read the description of an encoder, or of the one in a run directory, as `encoder` or `model`."""
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
            architecture.in_chans == 3,
            f"{origin}: in_chans ({architecture.in_chans}) must be 3: images are read as RGB; give another encoder",
        )
        return EncoderConfig(
            architecture=architecture,
            normalization=Normalization(tuple(normalization["mean"]), tuple(normalization["std"])),
            task=value["task"],
            vocab_size=value.get("vocab_size"),
            best_block=value.get("best_block"),
            class_names=None if class_names is None else tuple(class_names),
            pooling=value.get("pooling"),
            multi_label=value.get("multi_label", False),
            provenance=value.get("provenance", {}),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{origin} is malformed ({error!r}); write the encoder again") from None


def encoder_config_to_json(config: EncoderConfig) -> dict[str, Any]:
    """Return what `config.json` holds."""
    return {
        **FORMAT.header(),
        **not_for_transformers("beit.common.encoder.load_encoder"),
        **config_to_dict(replace(config, provenance={})),
        "normalization": {"mean": list(config.normalization.mean), "std": list(config.normalization.std)},
        "provenance": config.provenance,
    }

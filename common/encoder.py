"""The encoder on disk: a folder with `model.safetensors` and `config.json` that needs nothing but this module to load.

Here: writing, reading and adapting weights to another resolution or position mode. Not here: training checkpoints
(`common/checkpoint.py`) and other projects' formats (import and export).

The weights keep the official BEiT names and every tensor of the model they come from, head included; whoever loads them
takes what it has parameters for. Format: docs/encoder-format.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from beit.common.config import config_from_dict, config_to_dict
from beit.common.errors import InputError, require
from beit.common.files import fsync_directory, read_json, write_json
from beit.common.position_bias import TABLE_KEY, num_table_rows, resize_table
from beit.common.vit import VisionTransformer
from beit.common.vit_config import Normalization, PosBias, ViTConfig

logger = logging.getLogger(__name__)

FORMAT, FORMAT_VERSION = "beit-encoder", 1
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
SHARED_TABLE = f"rel_pos_bias.{TABLE_KEY}"


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
    class_names: tuple[str, ...] | None = None
    """Names of the classes of a classification head, in the order of its logits."""
    pooling: str | None = None
    """What a classification head sees: mean or cls."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: data and tokenizer fingerprints, steps, recipe, metrics, code version."""


def save_encoder(
    directory: Path,
    state: Mapping[str, Tensor],
    *,
    architecture: ViTConfig,
    mean: Sequence[float],
    std: Sequence[float],
    task: Literal["pretrain"] = "pretrain",
    vocab_size: int | None = None,
    provenance: Mapping[str, Any],
) -> None:
    """Write a pre-trained encoder with all its tensors; see `save_model`.

    Args:
        directory: Created where missing; an older encoder in it is replaced.
        state: Full state dict of a `MaskedImageModel`.
        architecture: Its shape.
        mean: Normalisation of the pixels in [0, 1], per channel.
        std: Normalisation of the pixels in [0, 1], per channel.
        task: Recorded as it is.
        vocab_size: Rows of the head.
        provenance: JSON-able; recorded as it is.
    """
    config = EncoderConfig(
        architecture=architecture,
        normalization=Normalization(tuple(mean), tuple(std)),
        task=task,
        vocab_size=vocab_size,
        provenance=dict(provenance),
    )
    save_model(directory, state, config)


def save_model(directory: Path, state: Mapping[str, Tensor], config: EncoderConfig) -> None:
    """Write weights and their description, each file complete or absent.

    A reader at any moment, and a crash at any moment, finds the old pair, the new pair, the new weights with the old
    description of an equal architecture, or, where the architecture changes, an incomplete folder that says so.

    Args:
        directory: Created where missing.
        state: Full state dict; tensors on any device.
        config: Its description.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config_path = directory / CONFIG_FILE
    if config_path.exists() and _differs(config_path, config):
        config_path.unlink()
        fsync_directory(directory)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    weights_path = directory / WEIGHTS_FILE
    temporary = directory / f"{WEIGHTS_FILE}.tmp.{os.getpid()}"
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, weights_path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    write_json(config_path, _to_json(config))


def read_encoder_config(path: str | Path) -> EncoderConfig:
    """Read the description of an encoder.

    Args:
        path: Folder of an encoder, or a run directory with an `encoder` or a `model` folder in it.

    Raises:
        InputError: no encoder there, another format, or a malformed description.
    """
    directory = find_encoder(path)
    return _from_json(read_json(directory / CONFIG_FILE), origin=str(directory / CONFIG_FILE))


def read_encoder_state(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of an encoder, on the CPU.

    Raises:
        InputError: no encoder there, or its weights are missing or damaged.
    """
    weights_path = find_encoder(path) / WEIGHTS_FILE
    try:
        return load_file(weights_path)
    except (FileNotFoundError, SafetensorError) as error:
        raise InputError(f"{weights_path} cannot be read ({error}); write the encoder again") from None


def load_encoder(
    path: str | Path, *, img_size: int | None = None, pos_bias: PosBias | None = None, drop_path: float = 0.0
) -> VisionTransformer:
    """Load an encoder for use, ready to call `forward_features`.

    Args:
        path: Folder of an encoder, or a run directory.
        img_size: Side of the input in pixels, if another than in pre-training; the position tables are resized.
        pos_bias: Position mode, if another; a shared table is copied to every block.
        drop_path: Stochastic depth rate, for training it further.

    Returns:
        The model in eval mode on the CPU, without head and final norm, with `config` (its shape), `normalization`
        (mean and std of its input pixels in [0, 1]) and `provenance`.

    Raises:
        InputError: no encoder there, it is damaged, or it cannot be adapted as asked.
    """
    stored = read_encoder_config(path)
    config = replace(
        stored.architecture,
        img_size=stored.architecture.img_size if img_size is None else img_size,
        pos_bias=stored.architecture.pos_bias if pos_bias is None else pos_bias,
        drop_path=drop_path,
    )
    with torch.random.fork_rng(devices=[]):  # its initial values are overwritten: leave the caller's stream alone
        model = VisionTransformer(config)
    load_weights(model, path)
    return model.eval()


def load_weights(
    model: VisionTransformer, path: str | Path, *, fresh: Sequence[str] = (), skip: Sequence[str] = ()
) -> list[str]:
    """Load an encoder's weights into a model, adapted to its resolution and position mode.

    Tensors the model has no parameter for (a head, the mask token) are left out; they are named in the log. Also sets
    the model's `normalization` and `provenance`.

    Args:
        model: Of the encoder's width, depth and patch size.
        path: Folder of an encoder, or a run directory.
        fresh: Prefixes of parameters that may keep their initial values when the encoder lacks them or has another shape.
        skip: Prefixes of parameters that keep their initial values in any case.

    Returns:
        Names of the parameters that kept their initial values.

    Raises:
        InputError: no encoder there, it is damaged, or it lacks or mismatches any other parameter.
    """
    stored = read_encoder_config(path)
    state = adapt_state(read_encoder_state(path), stored.architecture, model.config)
    wanted = model.state_dict()
    loaded = {name: tensor for name, tensor in state.items() if name in wanted and not name.startswith(tuple(skip))}
    kept = []
    for name, parameter in wanted.items():
        if name in loaded and loaded[name].shape == parameter.shape:
            continue
        found = f"shape {tuple(loaded[name].shape)}" if name in loaded else "no such tensor"
        allowed = name.startswith((*fresh, *skip))
        require(allowed, f"{path}: {name} has {found}, the model needs {tuple(parameter.shape)}; it is another model")
        loaded.pop(name, None)
        kept.append(name)
    unused = sorted(set(state) - set(loaded))
    model.load_state_dict(loaded, strict=False)
    model.normalization, model.provenance = stored.normalization, dict(stored.provenance)
    logger.info("loaded %s: %d tensors; fresh: %s; not used: %s", path, len(loaded), kept or "none", unused or "none")
    return kept


def adapt_state(state: Mapping[str, Tensor], source: ViTConfig, target: ViTConfig) -> dict[str, Tensor]:
    """Rewrite a state dict for another resolution and position mode of the same architecture.

    A shared position table is copied to every block, which leaves the function computed unchanged; where the source has
    none, tables start at zero, likewise. Position tables and embeddings are resized to the target's patch grid.

    Args:
        state: Official names; not modified.
        source: Shape it belongs to.
        target: Shape wanted.

    Returns:
        The new state dict; unchanged tensors are the same objects.

    Raises:
        InputError: the two differ in width, depth, heads, patch size or absolute positions, or the source's position
            tables have no place in the target.
    """
    _check_adaptable(source, target)
    adapted = {name: tensor for name, tensor in state.items() if not name.endswith("relative_position_index")}
    block_tables = [f"blocks.{i}.attn.{TABLE_KEY}" for i in range(target.depth)]
    if source.pos_bias == "shared" and target.pos_bias == "per_block":
        table = adapted.pop(SHARED_TABLE)
        adapted |= {name: table.clone() for name in block_tables}
    elif source.pos_bias == "none" and target.pos_bias != "none":
        names = block_tables if target.pos_bias == "per_block" else [SHARED_TABLE]
        rows = num_table_rows(source.grid_size)
        adapted |= {name: torch.zeros(rows, target.num_heads) for name in names}
    for name, tensor in adapted.items():
        if name.endswith(TABLE_KEY):
            adapted[name] = resize_table(tensor, source.grid_size, target.grid_size)
        elif name == "pos_embed":
            adapted[name] = resize_pos_embed(tensor, source.grid_size, target.grid_size)
    return adapted


def resize_pos_embed(pos_embed: Tensor, source_grid: tuple[int, int], target_grid: tuple[int, int]) -> Tensor:
    """Resize an absolute position embedding (1, 1 + N, D) to another grid: CLS kept, patches bicubic.

    Source: the released BEiT fine-tuning code. Differs: rectangles work.
    """
    if source_grid == target_grid:
        return pos_embed
    patches = pos_embed[:, 1:].reshape(1, *source_grid, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    patches = nn.functional.interpolate(patches.float(), size=target_grid, mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1], patches.flatten(2).transpose(1, 2).to(pos_embed.dtype)], dim=1)


def find_encoder(path: str | Path) -> Path:
    """Return the folder of an encoder given by itself or by the run directory around it.

    Raises:
        InputError: there is none, or it was cut off while being written.
    """
    given = Path(path)
    for directory in (given, given / "model", given / "encoder"):
        if (directory / CONFIG_FILE).is_file():
            return directory
    if (given / WEIGHTS_FILE).is_file():
        raise InputError(f"{given} has {WEIGHTS_FILE} but no {CONFIG_FILE}: writing it was interrupted; write it again")
    raise InputError(f"{given} is not an encoder: it has no {CONFIG_FILE}; give the encoder folder of a run")


def _check_adaptable(source: ViTConfig, target: ViTConfig) -> None:
    for name in ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "use_abs_pos_emb"):
        stored, wanted = getattr(source, name), getattr(target, name)
        require(stored == wanted, f"the encoder has {name} {stored}, the model wants {wanted}; they must be equal")
    require(
        source.pos_bias in ("none", target.pos_bias) or (source.pos_bias, target.pos_bias) == ("shared", "per_block"),
        f"the encoder has pos_bias {source.pos_bias!r}, which cannot become {target.pos_bias!r}; "
        f"set model.pos_bias to {source.pos_bias!r}",
    )


def _differs(config_path: Path, config: EncoderConfig) -> bool:
    try:
        return replace(_from_json(read_json(config_path), origin=str(config_path)), provenance={}) != replace(
            config, provenance={}
        )
    except InputError:
        return True  # it described nothing


def _to_json(config: EncoderConfig) -> dict[str, Any]:
    described = config_to_dict(replace(config, provenance={}))
    normalization = {"mean": list(config.normalization.mean), "std": list(config.normalization.std)}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **described,
        "normalization": normalization,
        "provenance": config.provenance,
    }


def _from_json(value: Any, *, origin: str) -> EncoderConfig:
    require(isinstance(value, dict) and value.get("format") == FORMAT, f"{origin} does not describe a {FORMAT}")
    version = value.get("format_version")
    require(version == FORMAT_VERSION, f"{origin} has format_version {version}; this version of beit reads {FORMAT_VERSION}")
    try:
        normalization = value["normalization"]
        class_names = value.get("class_names")
        return EncoderConfig(
            architecture=config_from_dict(ViTConfig, value["architecture"], origin=origin),
            normalization=Normalization(tuple(normalization["mean"]), tuple(normalization["std"])),
            task=value["task"],
            vocab_size=value.get("vocab_size"),
            class_names=None if class_names is None else tuple(class_names),
            pooling=value.get("pooling"),
            provenance=value.get("provenance", {}),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{origin} is malformed ({error!r}); write the encoder again") from None

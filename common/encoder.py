"""The encoder on disk: a folder with `model.safetensors` and `config.json` that needs nothing but this module to load.

Here: writing and loading. Not here: the description itself (`common/vit/description.py`), fitting weights to another
resolution or position mode (`common/vit/adapt.py`), training checkpoints (`common/runs/checkpoint.py`).

The weights keep the official BEiT names and every tensor of the model they come from, head included; whoever loads them
takes what it has parameters for. Format: docs/encoder-format.md.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from beit.common.errors import InputError, require
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.files import atomic_path, fsync_directory, remove_stale, sha256_file
from beit.common.storage.tensor_check import write_safetensors
from beit.common.vit.adapt import adapt_state
from beit.common.vit.config import PosBias
from beit.common.vit.description import (
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    EncoderConfig,
    encoder_config_to_json,
    find_encoder,
    read_encoder_config,
)
from beit.common.vit.vit import VisionTransformer

logger = logging.getLogger(__name__)

_SHA256 = "weights_sha256"
"""In the description: of the weights beside it; of both where new ones are about to replace them."""

_NAMES_IN_LOG = 12
"""Of tensors; more, as those of a pyramid on top of an encoder, are counted."""


def save_model(directory: Path, state: Mapping[str, Tensor], config: EncoderConfig) -> None:
    """Write a full state dict, on any device, and its description, each file complete or absent.

    A reader at any moment, and a crash at any moment, finds the old pair, the new pair, the new weights with the old
    description of an equal architecture, or, where the architecture changes, an incomplete folder that says so.

    Raises:
        OSError: it could not be written, because the disk is full for instance; the old pair is as it was.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_stale(directory)
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(weights_path) as temporary:
        # Not "pt", so that every version 4 of transformers refuses the file; see `not_for_transformers`, too.
        write_safetensors(temporary, tensors, metadata={"format": FORMAT.name})
        digest = sha256_file(temporary)
        if config_path.exists() and _differs(directory, config):
            config_path.unlink()
            fsync_directory(directory)
        elif config_path.exists():
            _announce(config_path, digest)
    write_json(config_path, {**encoder_config_to_json(config), _SHA256: digest})


def read_encoder_state(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of an encoder, on the CPU, and check that they are those that were written."""
    directory = find_encoder(path)
    read_encoder_config(directory)  # a wrong shape says more than a wrong hash
    weights_path, stated = directory / WEIGHTS_FILE, stated_hashes(directory / CONFIG_FILE)
    require(
        not stated or sha256_file(weights_path) in stated,
        f"{weights_path} is damaged, or not the file that was written: its sha256 is not that of {CONFIG_FILE}; copy "
        "both again, or write the encoder again",
    )
    try:
        state: dict[str, Tensor] = load_file(weights_path)
    except (FileNotFoundError, SafetensorError) as error:
        raise InputError(f"{weights_path} cannot be read ({error}); write the encoder again") from None
    return state


def weights_sha256(path: str | Path) -> str:
    """Return the sha256 of an encoder's weights, as its description says it; `read_encoder_state` proves that."""
    directory = find_encoder(path)
    stated = stated_hashes(directory / CONFIG_FILE)
    return stated[0] if len(stated) == 1 else sha256_file(directory / WEIGHTS_FILE)


def load_encoder(
    path: str | Path,
    *,
    img_size: int | None = None,
    pos_bias: PosBias | None = None,
    drop_path: float = 0.0,
    device: str | torch.device = "cpu",
) -> VisionTransformer:
    """Load an encoder for use, ready to call `forward_features`.

    Its input are images (B, 3, img_size, img_size) float32, normalised: what its `transform` makes of pictures. Its
    output are features (B, 1 + N, D) float32, CLS first, then N = (img_size / patch_size)**2 patches, row by row. It
    goes through `torch.export` with an open batch size; docs/python.md.

    Args:
        path: Folder of an encoder, or a run directory; of a fine-tuned model everything but its head.
        img_size: Side of the input in pixels, a multiple of the patch size, if another than in pre-training; the
            position tables are resized.
        pos_bias: Position mode, if another; a shared table is copied to every block.
        drop_path: Stochastic depth rate in [0, 1), for training it further.
        device: Where to put it.

    Returns:
        The model in eval mode, without head, and with a final norm only where the encoder has one of its own
        (`config.final_norm`). It has `config` (its shape; sizes in pixels), `transform` (image or path to input),
        `normalization` (mean and std of its input pixels in [0, 1]), `best_block` (from 0; None where none was probed)
        and `provenance`; `get_intermediate_layers` gives features of other blocks, `attention_weights` where a block
        looks.

    Example:
        >>> encoder = beit.load_encoder("runs/pretrain/encoder")
        >>> images = encoder.transform("photo.jpg")[None]
        >>> images.shape, images.dtype
        (torch.Size([1, 3, 32, 32]), torch.float32)
        >>> with torch.inference_mode():
        ...     hidden = encoder.forward_features(images)
        >>> hidden.shape, beit.pool_features(hidden, "mean").shape
        (torch.Size([1, 17, 24]), torch.Size([1, 24]))
    """
    stored = read_encoder_config(path)
    config = replace(
        stored.architecture,
        img_size=stored.architecture.img_size if img_size is None else img_size,
        pos_bias=stored.architecture.pos_bias if pos_bias is None else pos_bias,
        drop_path=drop_path,
    )
    with torch.device("meta"):  # initial values would cost seconds and draw from the caller's random stream
        model = VisionTransformer(config)
    load_weights(model, path)
    return model.eval().to(device)


def load_weights(
    model: VisionTransformer, path: str | Path, *, fresh: Sequence[str] = (), skip: Sequence[str] = ()
) -> list[str]:
    """Load an encoder's weights into a model, adapted to its resolution and position mode.

    Tensors the model has no parameter for (a head, the mask token) are left out; they are named in the log. Also sets
    the model's `normalization`, `crop_pct`, `best_block` and `provenance`.

    Args:
        model: Of the encoder's width, depth and patch size; on the meta device, nothing may keep its initial value.
        path: Folder of an encoder, or a run directory.
        fresh: Prefixes of parameters that may keep their initial values, where the encoder lacks them or their shape.
        skip: Prefixes of parameters that keep their initial values in any case.

    Returns:
        Names of the parameters that kept their initial values.
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
    if model.cls_token.is_meta:
        require(not kept, f"{path} lacks {', '.join(kept)}")
        model.build_index("cpu")
    model.load_state_dict(loaded, strict=False, assign=model.cls_token.is_meta)
    model.normalization, model.crop_pct, model.best_block = stored.normalization, stored.crop_pct, stored.best_block
    model.decoding = stored.decoding
    model.provenance = dict(stored.provenance)
    logger.info(
        "loaded %s: %d tensors; fresh: %s; not used: %s", *(path, len(loaded)), _in_words(kept), _in_words(unused)
    )
    return kept


def _in_words(names: Sequence[str]) -> str:
    """List names of tensors; of many, how many each part of the model has."""
    if len(names) <= _NAMES_IN_LOG:
        return str(list(names)) if names else "none"
    parts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{count} of {part}" for part, count in parts.items())


def _differs(directory: Path, config: EncoderConfig) -> bool:
    try:
        return replace(read_encoder_config(directory), provenance={}) != replace(config, provenance={})
    except InputError:
        return True  # it described nothing


def stated_hashes(config_path: Path) -> list[str]:
    """Return the hashes that a description allows; none in those of earlier versions."""
    stated = read_json(config_path).get(_SHA256, [])
    found = [stated] if isinstance(stated, str) else stated
    require(isinstance(found, list), f"{config_path} is malformed ({_SHA256}); write the encoder again")
    return list(found)


def _announce(config_path: Path, digest: str) -> None:
    """Let a description allow new weights, too, until it is replaced itself."""
    stated = stated_hashes(config_path)
    if stated and digest not in stated:
        write_json(config_path, {**read_json(config_path), _SHA256: [*stated, digest]})

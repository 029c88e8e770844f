"""The directory a tokenizer is kept in, whichever network it is.

    config.json           format, architecture, fingerprint, where it came from; written last
    model.safetensors     what words depend on: a trained dVAE as a whole, or DALL-E's encoder
    decoder.safetensors   DALL-E's decoder, if there is one; only pictures need it

The fingerprint covers the settings and the weights that decide words, and is checked whenever they are read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from beit.common.config import config_from_dict, config_to_dict
from beit.common.errors import InputError, require
from beit.common.storage.documents import Format, not_for_transformers, read_json, write_json
from beit.common.storage.files import remove_stale, sha256_file, write_atomic
from beit.common.storage.tensor_check import check_tensors, read_safetensors, read_shapes, require_possible
from beit.common.tokenizers.dalle import DalleModel
from beit.common.tokenizers.dalle_files import Part, as_float32, find_parts, load_dalle
from beit.common.tokenizers.dvae import DiscreteVAE
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig

FORMAT = Format("beit-tokenizer", 1)
CONFIG_FILE, WEIGHTS_FILE, DECODER_FILE = "config.json", "model.safetensors", "decoder.safetensors"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network as it was read: float32, on the CPU."""

    model: DiscreteVAE | DalleModel
    fingerprint: str
    """Of settings and weights; equal however the same weights are stored."""
    can_decode: bool
    """Whether `ids_to_pixels` works."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file that was converted."""

    name: str
    """Without its folder."""
    size: int
    """Bytes."""
    sha256: str
    """Hex, of the whole file."""
    url: str = ""
    """Where it was downloaded from; empty if it was copied by hand."""


def describe_source(file: Path, *, url: str = "") -> SourceFile:
    """Measure and hash a file before it is converted."""
    return SourceFile(name=file.name, size=file.stat().st_size, sha256=sha256_file(file), url=url)


def load_model(path: Path, *, need_decoder: bool = False) -> LoadedModel:
    """Read a tokenizer directory, or DALL-E's bare files.

    Args:
        path: Directory with config.json, folder with DALL-E's files, or the file of its encoder.
        need_decoder: Whether a decoder that is there but damaged is an error, in bare files.
    """
    settings = read_settings(path) if (path / CONFIG_FILE).is_file() else None
    if settings is not None and settings["architecture"] == "dvae":
        return _load_dvae(path, settings)
    if settings is None:
        encoder_file, decoder_file = find_parts(path)
    else:
        encoder_file = _present(path, WEIGHTS_FILE)
        decoder_file = _present(path, DECODER_FILE) if "decoder_fingerprint" in settings else None
    model = load_dalle(encoder_file, decoder_file, need_decoder=need_decoder or settings is not None)
    digest = dalle_fingerprint("encoder", model.encoder.state_dict())
    if settings is not None:
        _require_stated(path, WEIGHTS_FILE, digest, settings.get("fingerprint"))
        if model.decoder is not None:
            decoder_digest = dalle_fingerprint("decoder", model.decoder.state_dict())
            _require_stated(path, DECODER_FILE, decoder_digest, settings["decoder_fingerprint"])
    return LoadedModel(model, digest, model.decoder is not None)


def read_settings(directory: Path) -> dict[str, Any]:
    """Read config.json of a tokenizer directory."""
    settings = FORMAT.check(read_json(directory / CONFIG_FILE), directory / CONFIG_FILE)
    kind = settings.get("architecture")
    if kind not in ("dvae", "dall-e"):
        raise InputError(f"{directory} has architecture {kind!r}, this beit knows 'dvae' and 'dall-e'; update beit")
    return settings


def save_tokenizer(
    directory: Path, state: Mapping[str, Tensor], config: DiscreteVAEConfig, *, training: Mapping[str, Any]
) -> str:
    """Write a trained dVAE as a tokenizer directory, new or to be replaced, and return its fingerprint.

    `training`, where it came from, goes to config.json as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_stale(directory)
    tensors = as_float32(state)
    digest = fingerprint(_dvae_settings(config), tensors)
    write_atomic(directory / WEIGHTS_FILE, save(tensors))
    details = {"model": config_to_dict(config), "training": dict(training)}
    _write_settings(directory, "dvae", digest, details)
    return digest


def save_dalle(directory: Path, part: Part, tensors: Mapping[str, Tensor], source: SourceFile) -> str:
    """Write DALL-E's encoder as a tokenizer directory, or add the decoder to one; returns the part's fingerprint.

    The directory exists, for the decoder with the encoder in it; what it has of this part is replaced.
    """
    remove_stale(directory)
    saved = as_float32(tensors)
    digest = dalle_fingerprint(part, saved)
    if part == "encoder":
        write_atomic(directory / WEIGHTS_FILE, save(saved))
        _write_settings(directory, "dall-e", digest, {"sources": {"encoder": dataclasses.asdict(source)}})
        return digest
    settings = read_settings(directory)
    write_atomic(directory / DECODER_FILE, save(saved))
    settings["decoder_fingerprint"] = digest
    settings["sources"]["decoder"] = dataclasses.asdict(source)
    write_json(directory / CONFIG_FILE, settings)
    return digest


def recorded_sources(directory: Path) -> dict[Part, SourceFile]:
    """Return which files a directory of DALL-E's tokenizer was converted from."""
    sources = read_settings(directory).get("sources", {})
    origin = f"{directory}/{CONFIG_FILE}: sources"
    try:
        return {part: config_from_dict(SourceFile, source, origin=origin) for part, source in sources.items()}
    except (AttributeError, TypeError) as error:  # no mapping, or one that lacks a key
        raise InputError(f"{origin} is malformed ({error}); convert the files again") from None


def fingerprint(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the hex sha256 over settings and float32 tensors, whatever file they came from."""
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        data = tensors[name].detach().float().cpu().contiguous().numpy()
        hasher.update(f"\n{name} {data.shape}\n".encode())
        hasher.update(data.astype("<f4", copy=False).tobytes())
    return hasher.hexdigest()


def dalle_fingerprint(part: Part, tensors: Mapping[str, Tensor]) -> str:
    """Return the fingerprint of a part; the tokenizer's is that of its encoder, since the decoder may be absent."""
    return fingerprint({"architecture": "dall-e"}, {f"{part}.{name}": tensor for name, tensor in tensors.items()})


def _load_dvae(path: Path, settings: Mapping[str, Any]) -> LoadedModel:
    config = config_from_dict(DiscreteVAEConfig, settings.get("model", {}), origin=f"{path}/{CONFIG_FILE}")
    weights = _present(path, WEIGHTS_FILE)
    counts = (config.vocab_size, config.width, config.num_blocks, config.code_dim)
    require_possible(counts, read_shapes(weights), path / CONFIG_FILE)
    tensors = read_safetensors(weights)
    model = DiscreteVAE(config)
    check_tensors(tensors, model.state_dict(), path / WEIGHTS_FILE)
    digest = fingerprint(_dvae_settings(config), tensors)
    _require_stated(path, WEIGHTS_FILE, digest, settings.get("fingerprint"))
    model.load_state_dict(tensors)
    return LoadedModel(model, digest, True)


def _present(path: Path, name: str) -> Path:
    require((path / name).is_file(), f"{path} has no {name}; the tokenizer is incomplete, copy it again")
    return path / name


def _require_stated(path: Path, name: str, digest: str, stated: object) -> None:
    require(
        stated == digest,
        f"{path}: {name} and {CONFIG_FILE} do not belong together (fingerprint differs); copy it again",
    )


def _dvae_settings(config: DiscreteVAEConfig) -> dict[str, Any]:
    return {"architecture": "dvae", **config.identity()}


def _write_settings(directory: Path, architecture: str, digest: str, details: Mapping[str, Any]) -> None:
    refusal = not_for_transformers("beit.common.tokenizer.load_tokenizer")
    head = {**FORMAT.header(), **refusal, "architecture": architecture, "fingerprint": digest}
    write_json(directory / CONFIG_FILE, {**head, **details})

"""The directory a tokenizer is kept in, whichever network it is.

    config.json           format, architecture, fingerprint, where it came from; written last
    model.safetensors     what words depend on: a network trained here as a whole, or DALL-E's encoder
    decoder.safetensors   what only pictures need, if it is there: DALL-E's decoder, or the mean patch of each word

The fingerprint covers the settings and the weights that decide words, and is checked whenever they are read. The kinds
of networks that are trained here stand in one table, `KINDS`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from beit.common.config import config_from_dict, config_to_dict
from beit.common.errors import InputError, require
from beit.common.storage.documents import Format, not_for_transformers, read_json, write_json
from beit.common.storage.files import remove_stale, sha256_file, write_atomic
from beit.common.storage.tensor_check import check_tensors, read_safetensors, read_shapes, require_possible
from beit.common.tokenizers.dalle_files import Part, as_float32, find_parts, load_dalle
from beit.common.tokenizers.dvae import DiscreteVAE
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.common.tokenizers.kmeans import KMeansTokenizer
from beit.common.tokenizers.kmeans_config import KMeansConfig
from beit.common.tokenizers.vqkd import VQKD
from beit.common.tokenizers.vqkd_config import VQKDConfig

FORMAT = Format("beit-tokenizer", 1)
CONFIG_FILE, WEIGHTS_FILE, DECODER_FILE = "config.json", "model.safetensors", "decoder.safetensors"
DALLE = "dall-e"
"""Architecture of BEiT's own tokenizer, which is converted, not trained, and has no settings."""
PATCHES = "patches"
"""The only tensor of decoder.safetensors where that is mean patches."""


class Config(Protocol):
    """Settings of a network that is trained here."""

    @property
    def vocab_size(self) -> int:
        """Number of words, V."""

    @property
    def counts(self) -> tuple[int, ...]:
        """What is a number or a size of tensors of its own, so that absurd settings are noticed beside the file."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that the fingerprint covers."""


class Network(Protocol):
    """A network of this package, a `torch.nn.Module`; what `beit.common.tokenizer` makes of it is a `Tokenizer`."""

    vocab_size: int
    """Number of words, V."""
    downsampling: int
    """Pixels per token and side, p."""
    img_size: int | None
    """The one side of images in pixels that it takes; None takes all multiples of `downsampling`."""

    def pixels_to_ids(self, pixels: Tensor) -> Tensor:
        """Map uint8 (B, 3, H, W) to int64 (B, h, w)."""

    def ids_to_pixels(self, token_ids: Tensor) -> Tensor:
        """Map int64 (B, h, w) to uint8 (B, 3, H, W)."""

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Compute features in `dtype`; what decides between words stays float32."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what decides words: all of model.safetensors, and what the fingerprint covers."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any:
        """Take that back."""

    def eval(self) -> Any:
        """Leave training."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of network that is trained here is built and kept; all tensors of its state dict decide words."""

    config: type[Any]
    """Its settings, a `Config`."""
    network: Callable[[Any], Any]
    """The network that settings make, a `Network`."""
    paints_patches: bool = False
    """Whether it paints by mean patches, uint8 (V, 3, p, p), that its attribute `patches` gets where they are there."""


KINDS: Mapping[str, Kind] = {
    "dvae": Kind(DiscreteVAEConfig, DiscreteVAE),
    "kmeans": Kind(KMeansConfig, KMeansTokenizer, paints_patches=True),
    "vqkd": Kind(VQKDConfig, VQKD, paints_patches=True),
}
"""By architecture."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network as it was read: float32, on the CPU."""

    model: Network
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
    if not (path / CONFIG_FILE).is_file():
        encoder_file, decoder_file = find_parts(path)
        model = load_dalle(encoder_file, decoder_file, need_decoder=need_decoder)
        return LoadedModel(model, dalle_fingerprint("encoder", model.encoder.state_dict()), model.decoder is not None)
    settings = read_settings(path)
    if settings["architecture"] == DALLE:
        return _load_dalle(path, settings)
    return _load_kind(path, settings, KINDS[settings["architecture"]])


def read_settings(directory: Path) -> dict[str, Any]:
    """Read config.json of a tokenizer directory."""
    settings = FORMAT.check(read_json(directory / CONFIG_FILE), directory / CONFIG_FILE)
    kind, known = settings.get("architecture"), [*KINDS, DALLE]
    if kind not in known:
        raise InputError(
            f"{directory} has architecture {kind!r}, this beit knows {', '.join(map(repr, known))}; update beit"
        )
    return settings


def save_tokenizer(
    directory: Path,
    state: Mapping[str, Tensor],
    config: Config,
    *,
    training: Mapping[str, Any],
    patches: Tensor | None = None,
) -> str:
    """Write a trained network as a tokenizer directory, new or to be replaced, and return its fingerprint.

    Args:
        directory: Made if it is not there.
        state: What decides words, the network's state dict.
        config: Settings of one of `KINDS`.
        training: Where it came from; goes to config.json as it is.
        patches: Mean patch of every word, uint8 (V, 3, p, p), of a kind that paints by them; None leaves it without.
    """
    architecture = next(name for name, kind in KINDS.items() if isinstance(config, kind.config))
    directory.mkdir(parents=True, exist_ok=True)
    remove_stale(directory)
    tensors = as_float32(state)
    digest = fingerprint(_identity(architecture, config), tensors)
    write_atomic(directory / WEIGHTS_FILE, save(tensors))
    details: dict[str, Any] = {"model": config_to_dict(config), "training": dict(training)}
    if patches is not None:
        painting = {PATCHES: patches.cpu().contiguous()}
        write_atomic(directory / DECODER_FILE, save(painting))
        details["decoder_fingerprint"] = _patches_fingerprint(architecture, painting)
    _write_settings(directory, architecture, digest, details)
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
        _write_settings(directory, DALLE, digest, {"sources": {"encoder": dataclasses.asdict(source)}})
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
    return fingerprint({"architecture": DALLE}, {f"{part}.{name}": tensor for name, tensor in tensors.items()})


def _load_dalle(path: Path, settings: Mapping[str, Any]) -> LoadedModel:
    encoder_file = _present(path, WEIGHTS_FILE)
    decoder_file = _present(path, DECODER_FILE) if "decoder_fingerprint" in settings else None
    model = load_dalle(encoder_file, decoder_file, need_decoder=True)
    digest = dalle_fingerprint("encoder", model.encoder.state_dict())
    _require_stated(path, WEIGHTS_FILE, digest, settings.get("fingerprint"))
    if model.decoder is not None:
        decoder_digest = dalle_fingerprint("decoder", model.decoder.state_dict())
        _require_stated(path, DECODER_FILE, decoder_digest, settings["decoder_fingerprint"])
    return LoadedModel(model, digest, model.decoder is not None)


def _load_kind(path: Path, settings: Mapping[str, Any], kind: Kind) -> LoadedModel:
    config = config_from_dict(kind.config, settings.get("model", {}), origin=f"{path}/{CONFIG_FILE}")
    weights = _present(path, WEIGHTS_FILE)
    require_possible(config.counts, read_shapes(weights), path / CONFIG_FILE)
    tensors = read_safetensors(weights)
    model = kind.network(config)
    check_tensors(tensors, model.state_dict(), path / WEIGHTS_FILE)
    digest = fingerprint(_identity(settings["architecture"], config), tensors)
    _require_stated(path, WEIGHTS_FILE, digest, settings.get("fingerprint"))
    model.load_state_dict(tensors)
    if not kind.paints_patches:
        return LoadedModel(model, digest, True)
    # The words are all there without their pictures, so a file that somebody left out is no damage.
    if "decoder_fingerprint" in settings and (path / DECODER_FILE).is_file():
        model.patches = _load_patches(path, settings, model)
    return LoadedModel(model, digest, model.patches is not None)


def _load_patches(path: Path, settings: Mapping[str, Any], model: Network) -> Tensor:
    """Read the mean patch of every word, uint8 (V, 3, p, p)."""
    painting = read_safetensors(path / DECODER_FILE)
    shapes = {name: tuple(tensor.shape) for name, tensor in painting.items()}
    wanted = (model.vocab_size, 3, model.downsampling, model.downsampling)
    require(
        shapes == {PATCHES: wanted} and painting[PATCHES].dtype == torch.uint8,
        f"{path / DECODER_FILE} must hold {PATCHES}, uint8 {wanted}, and no more; it is of another tokenizer",
    )
    digest = _patches_fingerprint(settings["architecture"], painting)
    _require_stated(path, DECODER_FILE, digest, settings["decoder_fingerprint"])
    return painting[PATCHES]


def _present(path: Path, name: str) -> Path:
    require((path / name).is_file(), f"{path} has no {name}; the tokenizer is incomplete, copy it again")
    return path / name


def _require_stated(path: Path, name: str, digest: str, stated: object) -> None:
    require(
        stated == digest,
        f"{path}: {name} and {CONFIG_FILE} do not belong together (fingerprint differs); copy it again",
    )


def _identity(architecture: str, config: Config) -> dict[str, Any]:
    return {"architecture": architecture, **config.identity()}


def _patches_fingerprint(architecture: str, painting: Mapping[str, Tensor]) -> str:
    return fingerprint({"architecture": architecture, "part": "decoder"}, painting)


def _write_settings(directory: Path, architecture: str, digest: str, details: Mapping[str, Any]) -> None:
    refusal = not_for_transformers("beit.common.tokenizer.load_tokenizer")
    head = {**FORMAT.header(), **refusal, "architecture": architecture, "fingerprint": digest}
    write_json(directory / CONFIG_FILE, {**head, **details})

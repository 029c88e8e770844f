"""What a pre-training starts from: random weights, or an encoder that it continues.

Here: the shape and normalisation of a run, which settings an encoder contradicts, its weights in the model, what is new
beside them, and the record of all that in RUN/init.json, by which a run goes on when the encoder has moved. Not here:
fitting weights to another resolution (`common/vit/adapt.py`), weights of somebody else (`beit import`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from beit.common.config import config_from_dict, config_to_dict
from beit.common.encoder import read_encoder_state, weights_sha256
from beit.common.errors import InputError, require
from beit.common.images.decoding import GREY, RGB, Decoding
from beit.common.pages.numbers import percent
from beit.common.runs.layout import CONFIG, INIT
from beit.common.storage.documents import Format, json_bytes, parse_json, reading
from beit.common.storage.files import write_atomic
from beit.common.storage.paths import normalise
from beit.common.storage.place import MissingFile, place_of
from beit.common.vit.adapt import adapt_state, check_adaptable
from beit.common.vit.adaptation import check_adaptation
from beit.common.vit.agreement import channels_of, model_settings, require_same, require_shape
from beit.common.vit.config import Adaptation, Normalization, ViTConfig, build_vit_config, for_channels
from beit.common.vit.description import EncoderConfig, read_encoder_config
from beit.common.vit.position_bias import TABLE_KEY
from beit.pretrain.aggregation import LAYERS
from beit.pretrain.config import PretrainConfig
from beit.pretrain.model import MaskedImageModel, MaskedPixelModel
from beit.pretrain.objective import TokenSource

logger = logging.getLogger(__name__)

FORMAT = Format("beit-init", 1)
LEAST_SHARE = 1.0
"""Of the tensors that every encoder has, as many must come from the file: mask token, head, and a last norm or position
tables that the encoder never had are not among them, and whatever else is missing makes it another model."""
_DESCRIBED = ("task", "vocab_size", "best_block", "crop_pct", "provenance")
"""What the record keeps of an encoder's description, beside its shape and pixels."""
_HEADS = ("lm_head.", "pixel_head.")
_RELEASED = "BEiT"
"""Family, as `beit import` records it, whose words are DALL-E's."""
_RELEASED_WORDS, _RELEASED_TOKENIZER = 8192, "dall-e"
_NOT_OF_RELEASED = LAYERS
"""Tensors of BEiT v2, whose 8192 words are others."""


class HasSides(Protocol):
    """What of a store decides on the shape: its `StoreInfo`, or a plan of one."""

    @property
    def img_size(self) -> int:
        """Side of a view in pixels."""

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""

    @property
    def num_channels(self) -> int:
        """Channels of its images: 1 where they are grey, else 3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Continued:
    """The encoder that a run continues."""

    encoder: str
    """Its folder, as it was given."""
    sha256: str
    """Of its weights."""
    source: EncoderConfig
    """Its description; the architecture is that of its own resolution and positions."""
    counts: dict[str, list[int]] = field(default_factory=dict)
    """Of tensors and of parameters: how many came from the file, and of how many. Empty before they are loaded."""
    new: tuple[str, ...] = ()
    """What did not, in words."""
    left_out: tuple[str, ...] = ()
    """Of the file, what the model has no place for, in words."""

    def provenance(self) -> dict[str, Any]:
        """Return what the run's encoder says of it."""
        return {
            "encoder": self.encoder,
            "sha256": self.sha256,
            "counts": self.counts,
            "new": list(self.new),
            "left_out": list(self.left_out),
            "task": self.source.task,
            "provenance": self.source.provenance,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StartingPoint:
    """What a run starts from."""

    architecture: ViTConfig
    """Shape of the model to train."""
    normalization: Normalization
    """Of its pixels."""
    continued: Continued | None = None
    """The encoder; None for random weights."""
    adaptation: Adaptation = Adaptation()
    """How much of it is trained."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the description of the run's encoder takes over from the one that it continues."""
        if self.continued is None:
            return {}
        return {"best_block": self.continued.source.best_block, "crop_pct": self.continued.source.crop_pct}


def starting_point(config: PretrainConfig, store: HasSides, *, earlier: Continued | None = None) -> StartingPoint:
    """Decide shape and normalisation before anything is built.

    Args:
        config: The settings; what they leave open is the encoder's.
        store: Decides on the size of views and patches.
        earlier: What the run that is to go on began from, from `earlier_start`; then the encoder may have moved.
    """
    if config.init is None:
        if earlier is not None:
            raise InputError(
                f"the run began from --init {earlier.encoder}; name that again, or a new directory for a run from "
                "random weights"
            )
        shape = build_vit_config(
            config.model, img_size=store.img_size, patch_size=store.patch_size, in_chans=store.num_channels
        )
        pixels = for_channels(config.data.normalization, shape.in_chans)
        return StartingPoint(architecture=shape, normalization=pixels)
    continued = _found(config.init) if earlier is None else _same(config.init, earlier)
    source = continued.source
    shape, in_chans = source.architecture, channels_of(source.architecture, config.model)
    pixels = for_channels(source.normalization, in_chans)
    require(
        shape.patch_size == store.patch_size,
        f"the encoder {config.init} has patches of {shape.patch_size} px, and the store patches of {store.patch_size} "
        f"px; make a store with beit tokenize --patch-size {shape.patch_size}, or take another encoder",
    )
    require_shape(shape, config.model, config.init)
    data = config.data
    own = {
        "data.mean": (_listed(data.mean), list(pixels.mean), "mean of the pixels"),
        "data.std": (_listed(data.std), list(pixels.std), "standard deviation of the pixels"),
    }
    require_same(own, config.init)
    shape = replace(
        shape,
        in_chans=in_chans,
        img_size=store.img_size,
        drop_path=config.model.drop_path,
        pos_bias=shape.pos_bias if config.model.pos_bias == "auto" else config.model.pos_bias,
        use_mask_token=True,
        init="pretrain",
    )
    check_adaptable(source.architecture, shape)
    adaptation = Adaptation.parse(config.adapt)
    check_adaptation(adaptation, shape)
    return StartingPoint(architecture=shape, normalization=pixels, continued=continued, adaptation=adaptation)


def trains_position_tables(start: StartingPoint) -> bool:
    """Tell whether a run trains relative position tables, those that its encoder never had included."""
    bias, adaptation = start.architecture.pos_bias, start.adaptation
    if bias == "none" or start.continued is None:
        return bias != "none"
    if start.continued.source.architecture.pos_bias == "none":
        return True
    is_shared_kept = adaptation.last_blocks is not None and bias == "shared"
    return adaptation.rank is None and not is_shared_kept


def in_force(config: PretrainConfig, start: StartingPoint) -> PretrainConfig:
    """Return the settings with those filled in that were left out, and came from the encoder."""
    pixels: dict[str, Any] = start.normalization._asdict()
    if start.continued is None:
        shape, named = start.architecture, replace(config.data, **pixels)
        if named == config.data:
            return config
        return replace(
            config, model=replace(config.model, in_chans=GREY if shape.in_chans == GREY else RGB), data=named
        )
    brought = model_settings(start.architecture)
    return replace(
        config,
        init=start.continued.encoder,
        model=replace(config.model, **brought | {"size": config.model.size or start.architecture.size}),
        data=replace(config.data, **pixels),
    )


def load_initial(
    model: MaskedImageModel | MaskedPixelModel, start: StartingPoint, tokens: TokenSource | None
) -> Continued:
    """Put the encoder's weights into a model with initial values, and return what came from it and what did not."""
    continued = start.continued
    assert continued is not None
    origin, source = continued.encoder, continued.source
    stored = read_encoder_state(origin)
    require(
        weights_sha256(origin) == continued.sha256,
        f"{origin} is not the encoder any more that this run began from, and there is no checkpoint to go on from; "
        "name a new directory for the run",
    )
    bad = [name for name, tensor in stored.items() if not bool(torch.isfinite(tensor).all())]
    require(not bad, f"{origin}: {', '.join(bad[:1])} holds numbers that are not finite; take another encoder")
    why_new = _other_words(source, tokens)
    state = {name: value for name, value in stored.items() if not (why_new and name.startswith("lm_head."))}
    adapted = adapt_state(state, source.architecture, model.config, pixels=source.normalization)
    wanted = model.state_dict()
    created = [name for name in adapted if name not in stored and source.architecture.pos_bias == "none"]
    taken = {
        name: tensor
        for name, tensor in adapted.items()
        if name in wanted and tensor.shape == wanted[name].shape and name not in created
    }
    may_be_new = ("mask_token", f"{LAYERS}.", *_HEADS) + (() if source.architecture.final_norm else ("norm.",))
    needed = [name for name in wanted if not name.startswith(may_be_new) and name not in created]
    lacking = [name for name in needed if name not in taken]
    share = (len(needed) - len(lacking)) / len(needed)
    if share < LEAST_SHARE:
        found = f"has shape {tuple(adapted[lacking[0]].shape)}" if lacking[0] in adapted else "is not there"
        raise InputError(
            f"{origin} has only {len(needed) - len(lacking)} of the {len(needed)} tensors of its architecture "
            f"({lacking[0]} {found}): another model, or a part of one; take another encoder, or import it again"
        )
    model.load_state_dict(taken | {name: adapted[name] for name in created}, strict=False)
    model.provenance = dict(source.provenance)
    return replace(
        continued,
        counts={
            "tensors": [len(taken), len(wanted)],
            "parameters": [_size(taken.values()), _size(wanted.values())],
        },
        new=_in_words([name for name in wanted if name not in taken], model, why_new),
        left_out=_parts([name for name in stored if name not in taken and name not in _moved(stored, adapted)], source),
    )


def describe(start: StartingPoint, *, is_resumed: bool) -> str:
    """Say in a line what a run begins from, or began."""
    continued = start.continued
    assert continued is not None
    (tensors, all_tensors), (parameters, all_parameters) = (continued.counts[n] for n in ("tensors", "parameters"))
    parts = [
        f"{'began' if is_resumed else 'begins'} from {continued.encoder} (sha256 {continued.sha256[:12]}): "
        f"{tensors} of {all_tensors} tensors and {percent(parameters / all_parameters)} of the parameters",
        f"new: {', '.join(continued.new) or 'nothing'}",
    ]
    parts += [f"left out: {', '.join(continued.left_out)}"] if continued.left_out else []
    source, shape = continued.source.architecture, start.architecture
    if source.grid_size != shape.grid_size:
        parts.append(f"positions resized from {source.grid_size[0]} x {source.grid_size[0]} patches")
    return "; ".join(parts)


def describe_pixels(start: StartingPoint, decoding: Decoding) -> str:
    """Say where the encoder learned from other pixels of the same files than the store's; nothing where they agree.

    Args:
        start: What a run begins from, an encoder.
        decoding: How the images of the store became pixels.
    """
    assert start.continued is not None
    here, there = decoding.unlike(start.continued.source.decoding)
    if {here.get("channels"), there.get("channels")} == {"rgb", "grey"}:  # of which `describe_fit` speaks
        del here["channels"], there["channels"]
    if not here:
        return ""
    own, others = (", ".join(f"{name} {value}" for name, value in one.items()) for one in (here, there))
    encoder = start.continued.encoder
    return (
        f"the store's images are decoded with {own}, those that {encoder} was trained on with {others}: it begins "
        "with pixels that it does not know; tokenise with its settings, unless that is what you want"
    )


# The record in a run


def record(run: Path, continued: Continued) -> None:
    """Write down what a run began from."""
    write_atomic(run / INIT, json_bytes(_to_json(continued)))


def earlier_start(run: Path, *, resume: str = "auto", sync_to: str | None = None) -> Continued | None:
    """Return what a run began from that is to go on: by the record of it, of the run that it goes on from, or its copy.

    None where none of them has one.
    """
    folders = [run]
    if resume not in ("auto", "never"):
        named = Path(resume).resolve()
        folders += [named, *named.parents[:2]]
    for folder in folders:
        if (folder / INIT).is_file():
            return _from_json(parse_json((folder / INIT).read_bytes(), label=str(folder / INIT)), folder / INIT)
    if sync_to is None or resume == "never" or (run / CONFIG).is_file():
        return None
    copy = place_of(normalise(sync_to)) / INIT
    try:
        return _from_json(parse_json(copy.read(), label=copy.location), copy.location)
    except MissingFile:
        return None


def _found(encoder: str) -> Continued:
    source = read_encoder_config(encoder)
    return Continued(encoder=encoder, sha256=weights_sha256(encoder), source=source)


def _same(encoder: str, earlier: Continued) -> Continued:
    """Return what the run began from, unless another encoder is named now."""
    if encoder == earlier.encoder:
        return earlier
    found = _found(encoder)
    require(
        found.sha256 == earlier.sha256,
        f"the run began from --init {earlier.encoder} (sha256 {earlier.sha256[:12]}), and {encoder} is another encoder "
        f"({found.sha256[:12]}); name that one, or a new directory for a run from this one",
    )
    return earlier


def _other_words(source: EncoderConfig, tokens: TokenSource | None) -> str:
    """Say why the head of an encoder is of no use for these words; empty where it is, or where there is none."""
    if tokens is None or source.vocab_size is None:
        return ""
    if source.vocab_size != tokens.vocab_size:
        return f"the encoder's has {source.vocab_size}"
    fingerprint, name = (source.provenance.get(f"tokenizer{suffix}") for suffix in ("_fingerprint", ""))
    if fingerprint is not None:
        return "" if fingerprint == tokens.fingerprint else f"the encoder's are those of {name or 'another tokenizer'}"
    is_released = source.provenance.get("family") == _RELEASED and source.vocab_size == _RELEASED_WORDS
    is_released &= not any(_NOT_OF_RELEASED in str(left) for left in source.provenance.get("left_out", ()))
    if is_released and tokens.name == _RELEASED_TOKENIZER:
        return ""
    return "whose words the encoder's head predicts is not known"


def _in_words(names: Sequence[str], model: MaskedImageModel | MaskedPixelModel, why_new: str) -> tuple[str, ...]:
    """Name what is new in a model, by the official names of its tensors."""
    words: dict[str, None] = {}
    for name in names:
        if name == "mask_token":
            words["mask token"] = None
        elif name.startswith("norm."):
            words["last norm"] = None
        elif name.startswith(f"{LAYERS}."):
            words["aggregating blocks"] = None
        elif name.endswith(TABLE_KEY):
            words["position bias (of zeros)"] = None
        elif isinstance(model, MaskedImageModel):
            words[f"head of {model.vocab_size} words" + (f" ({why_new})" if why_new else "")] = None
        else:
            words["head of pixels"] = None
    return tuple(words)


def _parts(names: Iterable[str], source: EncoderConfig) -> tuple[str, ...]:
    """Name what of a file has no place in a model, by parts."""
    labels = {"lm_head": f"head of {source.vocab_size} words", "pixel_head": "head of pixels", "norm": "last norm"}
    labels[LAYERS] = "aggregating blocks"
    if source.class_names is not None:
        labels["head"] = f"head of {len(source.class_names)} classes"
    return tuple(dict.fromkeys(labels.get(part, part) for part in (name.partition(".")[0] for name in names)))


def _moved(stored: Mapping[str, Tensor], adapted: Mapping[str, Tensor]) -> list[str]:
    """Return position tables that stand under other names now."""
    has_tables = any(name.endswith(TABLE_KEY) for name in adapted)
    return [name for name in stored if has_tables and name.endswith(TABLE_KEY)]


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _listed(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)


def _to_json(continued: Continued) -> dict[str, Any]:
    source = continued.source
    return {
        **FORMAT.header(),
        "encoder": continued.encoder,
        "sha256": continued.sha256,
        "architecture": config_to_dict(source.architecture),
        "normalization": [list(values) for values in source.normalization],
        "description": {name: getattr(source, name) for name in _DESCRIBED},
        "counts": continued.counts,
        "new": list(continued.new),
        "left_out": list(continued.left_out),
    }


def _from_json(document: Any, path: Path | str) -> Continued:
    value = FORMAT.check(document, path)
    with reading(path, way_out="restore it, or name a new directory for the run"):
        mean, std = value["normalization"]
        return Continued(
            encoder=value["encoder"],
            sha256=value["sha256"],
            source=EncoderConfig(
                architecture=config_from_dict(ViTConfig, value["architecture"], origin=str(path)),
                normalization=Normalization(tuple(mean), tuple(std)),
                **{name: value["description"][name] for name in _DESCRIBED},
            ),
            counts={name: list(counts) for name, counts in value["counts"].items()},
            new=tuple(value["new"]),
            left_out=tuple(value["left_out"]),
        )

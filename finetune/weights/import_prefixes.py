"""Where in a checkpoint the encoder is: what wrappers, trainers and pairs of networks put before its names.

An encoder is found by its class token. What stands before that name is a wrapper of everybody's (DDP, FSDP, Fabric,
torch.compile), a part of somebody's training (student, momentum encoder, backbone beside a projector), or unknown, and
then the user says it. The names themselves are `import_names.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from beit.common.errors import InputError

WeightsKind = Literal["ema", "plain"]

_INSERTED = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|_forward_module)\.")
"""Put before names, or in their midst, by FSDP, activation checkpointing, torch.compile and Fabric."""
_TOKEN = re.compile(r"^(.*?)(embeddings\.)?cls_token$")
_WRAPPERS = {"module", "model", "net", "network", "encoder", "backbone", "vit", "visual", "trunk", "student"}
_WRAPPERS |= {"base_encoder", "online_encoder", "feature_extractor"}
"""Parts of names before a plain encoder, by trainers that are in use: DINO, iBOT, MoCo v3, solo-learn, Lightning."""
_AVERAGES = {"teacher", "momentum_encoder", "momentum_backbone", "target_encoder", "ema", "ema_model", "model_ema"}
"""Parts of names before a running average of one."""
_HUGGING_FACE = ("beit", "vit", "deit", "dinov2", "data2vec_vision")
"""What Hugging Face puts before an encoder that has a head beside it."""
_HEADS = re.compile(r"(neck|decode_head|auxiliary_head|fpn1|fpn2|fpn)\.")
"""Beside mmsegmentation's or UperNet's `backbone`."""
_FLAT = re.compile(r"(^|\.)_?flat_param")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trunk:
    """The encoder of a file."""

    names: dict[str, str]
    """From its name, and that of a head on it, without what is put before, to the name in the file."""
    left_out: list[str]
    """Names, as in the file, of what is beside it."""
    prefix: str
    """What stood before the names; empty where nothing did."""
    kind: WeightsKind | None
    """Whether the names say that it is a running average, or beside one; None where they say neither."""
    beside: tuple[str, ...]
    """What stands before the names of other encoders of the file."""


def find_trunk(tensors: Mapping[str, Tensor], weights: WeightsKind | None, prefix: str | None, origin: str) -> Trunk:
    """Find the encoder among the names of a file.

    Args:
        tensors: By the names of the file.
        weights: Which of a pair of encoders. By default the plain one of MoCo v3 and solo-learn, as their own linear
            evaluations take, and the average otherwise.
        prefix: What stands before the encoder's names, where the user says it.
        origin: For messages.
    """
    if (flat := next((name for name in tensors if _FLAT.search(name)), None)) is not None:
        raise InputError(
            f"{origin} has {flat!r}: FSDP saved its pieces flattened; save it again with StateDictType.FULL_STATE_DICT"
        )
    given = {_INSERTED.sub("", name): name for name in tensors}
    wrapper = _common_wrapper(given)
    given = {name.removeprefix(wrapper): original for name, original in given.items()}
    found = sorted({match[1] for name in given if (match := _TOKEN.match(name)) is not None})
    if prefix is not None:
        return _at_prefix(given, prefix, wrapper, found, origin)
    if not found or "" in found:  # what is missing is said by who looks for it
        return Trunk(names=given, left_out=[], prefix=wrapper, kind=None, beside=())
    chosen = _choose(found, weights, origin)
    kind: WeightsKind | None = None
    if len(found) > 1 or _is_average(chosen):
        kind = "ema" if _is_average(chosen) else "plain"
    beside = tuple(wrapper + other for other in found if other != chosen)
    return _cut(given, chosen, wrapper, kind, beside)


def _common_wrapper(names: Iterable[str]) -> str:
    """Return what stands before every single name, such as "module." of DDP, once or several times."""
    wrapper, rest = "", list(names)
    while rest and rest[0].split(".")[0] in ("module", "model"):
        part = rest[0].split(".")[0] + "."
        if not all(name.startswith(part) for name in rest):
            break
        wrapper, rest = wrapper + part, [name.removeprefix(part) for name in rest]
    return wrapper


def _at_prefix(given: Mapping[str, str], prefix: str, wrapper: str, found: list[str], origin: str) -> Trunk:
    inside = _INSERTED.sub("", prefix.rstrip(".") + "." if prefix else "").removeprefix(wrapper)
    names = {name.removeprefix(inside): original for name, original in given.items() if name.startswith(inside)}
    if not any(_TOKEN.match(name) and _TOKEN.match(name)[1] in ("", *_with_dots(_HUGGING_FACE)) for name in names):  # type: ignore[index]
        raise InputError(f"{origin} has no encoder under --prefix {prefix}; {_listed(wrapper, found)}")
    left_out = [original for name, original in given.items() if not name.startswith(inside)]
    others = tuple(wrapper + other for other in found if not other.startswith(inside))
    return Trunk(names=names, left_out=left_out, prefix=wrapper + inside, kind=None, beside=others)


def _choose(found: list[str], weights: WeightsKind | None, origin: str) -> str:
    known = [prefix for prefix in found if set(_parts(prefix)) <= _WRAPPERS | _AVERAGES | set(_HUGGING_FACE)]
    if not known:
        raise InputError(f"{origin}: {_listed('', found)}; give --prefix {found[0].rstrip('.')}")
    averages = [prefix for prefix in known if _is_average(prefix)]
    plain = [prefix for prefix in known if not _is_average(prefix)]
    is_by_pairs = any(set(_parts(prefix)) & {"momentum_encoder", "momentum_backbone"} for prefix in averages)
    wanted = weights or ("plain" if is_by_pairs and plain else "ema")
    kinds = {"ema": averages, "plain": plain}
    if weights is not None and not kinds[weights]:
        what = "running average" if weights == "ema" else "plain weights"
        raise InputError(f"{origin} has no {what} among {', '.join(known)}; leave --weights out")
    candidates = kinds[wanted] or plain or averages
    if len(candidates) > 1:
        raise InputError(f"{origin}: {_listed('', candidates)}; --prefix chooses one")
    return candidates[0]


def _cut(
    given: Mapping[str, str], chosen: str, wrapper: str, kind: WeightsKind | None, beside: tuple[str, ...]
) -> Trunk:
    """Separate the encoder, and a head that belongs to it, from the rest."""
    *outer, last = _parts(chosen)
    outside = ".".join([*outer, ""]) if outer else ""
    is_hugging_face = any(name.startswith(f"{chosen}embeddings.") for name in given)
    has_masks = last == "backbone" and any(name.startswith(f"{outside}decode_head.") for name in given)
    names: dict[str, str] = {}
    left_out: list[str] = []
    for name, original in given.items():
        beyond = name.removeprefix(outside)
        if name.startswith(chosen):
            names[name.removeprefix(chosen)] = original
        elif name.startswith(outside) and (
            (is_hugging_face and last in _HUGGING_FACE) or (has_masks and _HEADS.match(beyond))
        ):
            names[beyond] = original
        else:
            left_out.append(original)
    return Trunk(names=names, left_out=left_out, prefix=wrapper + chosen, kind=kind, beside=beside)


def _is_average(prefix: str) -> bool:
    return bool(set(_parts(prefix)) & _AVERAGES)


def _parts(prefix: str) -> list[str]:
    return [part for part in prefix.split(".") if part]


def _with_dots(parts: Iterable[str]) -> list[str]:
    return [f"{part}." for part in parts]


def _listed(wrapper: str, found: list[str]) -> str:
    if not found:
        return "no tensor of it is a class token"
    if [wrapper + one for one in found] == [""]:
        return "its encoder has none; leave --prefix out"
    several = "s" if len(found) > 1 else ""
    return f"its encoder{several} stand{'' if several else 's'} under {', '.join(wrapper + one for one in found)}"

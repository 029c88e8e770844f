"""Where a model comes from, step by step: images, tokenizer, token store, pre-training, labelled images, training.

What weights say of themselves is believed; what lies on this machine adds to it. A step that several runs share stands
once. Which documents hold verdicts on tokenizers is `documents.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from beit.common.errors import InputError
from beit.common.overview.report.documents import Documents, TokenizerVerdict
from beit.common.overview.report.results import learned_from
from beit.common.overview.report.run_files import RunFiles
from beit.common.overview.report.section import Section, chain
from beit.common.overview.report.settings import recipe_text
from beit.common.pages.numbers import count, percent
from beit.common.runs.starts import named, when
from beit.common.shards.token_store import TokenStore
from beit.common.storage.paths import is_remote
from beit.common.store import open_store

_IDENTITY_CHARS = 12
_STEPS = (
    *("Images", "Teacher", "Tokenizer", "Token store", "Weights to begin from", "Pre-training"),
    *("Labelled images", "Fine-tuning", "Frozen features", "Measured on"),
)
_KINDS_OF_TOKENIZERS = {
    "dvae": "discrete VAE",
    "vqkd": "distilled from a teacher (VQ-KD)",
    "kmeans": "k-means of patches",
    "dall-e": "DALL-E's discrete VAE",
}
_SOURCES = {"files": "loose files", "tar": "tars", "parquet": "Parquet files"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One thing on the way."""

    step: str
    """Which step it is, of `_STEPS`."""
    key: str
    """What tells it from others of its step."""
    name: str
    """As its user knows it."""
    text: str = ""
    """What it is, in a line."""
    made: str = ""
    """When and by which version; empty where nothing says it."""
    facts: tuple[tuple[str, str], ...] = ()
    """More of it, shown when asked for."""
    note: tuple[str, str] | None = None
    """What is to be looked at, in a word and in a sentence."""
    verdicts: tuple[TokenizerVerdict, ...] = ()
    """Of a tokenizer."""
    runs: str = ""
    """Which runs of the page came this way; empty for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step, and what it was for the runs of the page."""

    title: str
    """Of `_STEPS`."""
    entries: list[Entry]
    """At least one."""


def provenance_section(runs: Sequence[RunFiles], documents: Documents) -> Section:
    """Return the section that shows the way of all runs."""
    found: dict[tuple[str, str], tuple[Entry, list[RunFiles]]] = {}
    for run in runs:
        for entry in _way(run, documents):
            kept, members = found.setdefault((entry.step, entry.key), (entry, []))
            members += [run] if run not in members else []
    steps = [
        Step(
            title=title,
            entries=[
                entry if len(members) == len(runs) else replace(entry, runs=_members(entry, members))
                for (step, _), (entry, members) in found.items()
                if step == title
            ],
        )
        for title in _STEPS
    ]
    shown = [step for step in steps if step.entries]
    return Section(title="From images to model", anchor="provenance", parts=(chain(shown),) if shown else ())


def _members(entry: Entry, runs: Sequence[RunFiles]) -> str:
    """Name the runs that came this way; a run is not named beside its own name."""
    names = [run.name for run in runs]
    return "" if names == [entry.name] else ", ".join(names)


def _way(run: RunFiles, documents: Documents) -> Iterator[Entry]:
    if run.kind == "tokenizer":
        yield from _tokenizer_training(run, documents)
    elif run.kind == "pre-training":
        yield from _pretraining(run.path, run.origin, run, documents)
    else:
        yield from _downstream(run, documents)


def _tokenizer_training(run: RunFiles, documents: Documents) -> Iterator[Entry]:
    origin, made = run.origin, run.made
    if origin.get("source"):
        held_out = origin.get("num_held_out_images")
        yield Entry(
            step="Images",
            key=str(origin.get("index_sha256") or origin["source"]),
            name=named(str(origin["source"])),
            text=f"{count(origin.get('num_train_images', 0), 'image')} to train on"
            + (f", {count(held_out)} held out" if held_out else ""),
            facts=_some(("identity", _short(origin.get("index_sha256")))),
        )
    teacher = origin.get("teacher")
    if isinstance(teacher, dict):
        block = "the last block" if teacher.get("block") is None else f"block {teacher['block']}"
        shape = made.get("model", {}).get("vit") or {}  # where words are made of its features, it is in the tokenizer
        dim, side = teacher.get("dim") or shape.get("embed_dim"), teacher.get("img_size") or shape.get("img_size")
        width = f"{dim} features" if dim else "features"
        yield Entry(
            step="Teacher",
            key=str(teacher.get("fingerprint")),
            name=named(str(teacher.get("name"))),
            text=f"{width} per square of {block}" + (f", at {side} px" if side else ""),
            facts=_some(("fingerprint", _short(teacher.get("fingerprint")))),
        )
    yield _tokenizer(run.name, made.get("fingerprint"), documents, found=made, run=run)


def _tokenizer(
    name: str,
    fingerprint: Any,
    documents: Documents,
    *,
    found: Mapping[str, Any] | None = None,
    vocab_size: Any = None,
    run: RunFiles | None = None,
) -> Entry:
    """Describe a tokenizer by what is known of it: its own folder, where it is at hand, or what a store says of it."""
    made = found or documents.tokenizers.get(str(fingerprint), {})
    model, training = made.get("model") or {}, made.get("training") or {}
    vocab_size = model.get("vocab_size", vocab_size)
    texts = [
        _KINDS_OF_TOKENIZERS.get(str(made.get("architecture")), ""),
        f"{count(vocab_size, 'word')}" if isinstance(vocab_size, int) else "",
        f"{count(training['step'])} of {count(training['total_steps'], 'step')}" if training.get("total_steps") else "",
        recipe_text(run) if run else "",
    ]
    return Entry(
        step="Tokenizer",
        key=str(fingerprint or name),
        name=name,
        made=_made(run),
        text=", ".join(part for part in texts if part),
        facts=_some(
            ("fingerprint", _short(fingerprint)),
            ("trained on", named(str(training["source"])) if training.get("source") else ""),
        ),
        verdicts=documents.verdicts.get(str(fingerprint), ()),
        note=None
        if documents.verdicts.get(str(fingerprint)) or made.get("architecture") is None and not fingerprint
        else (
            "not measured",
            "no fitness report is at hand; `beit tokenizer report` makes one, name its JSON file, too",
        ),
    )


def _pretraining(
    path: Path | None, origin: Mapping[str, Any], run: RunFiles | None, documents: Documents, *, name: str = ""
) -> Iterator[Entry]:
    """Go the way of a pre-trained encoder; `run` is the run where it is at hand, else its provenance must do."""
    location = str(origin.get("store") or (run.data.get("store") if run else "") or "")
    store, trouble = _opened(location)
    begun = origin.get("init") or (run.init if run else None)
    if isinstance(begun, dict) and begun:
        yield from _begun_from(begun, documents)
    if "imported_from" in origin:
        yield _imported(origin, name)
        return
    if store is not None:
        yield _images(store)
    if origin.get("tokenizer") or store is not None and store.info.tokenizer is not None:
        info = store.info.tokenizer if store is not None else None
        yield _tokenizer(
            str(origin.get("tokenizer") or (info.name if info else "")),
            origin.get("tokenizer_fingerprint") or (info.fingerprint if info else None),
            documents,
            vocab_size=info.vocab_size if info else None,
        )
    if location:
        yield _store(location, origin, store, trouble, run)
    shown = run.name if run else name
    if shown:
        yield Entry(
            step="Pre-training",
            key=str(path.resolve()) if path else shown,
            name=shown,
            text=_training_text(run, origin),
            made=_made(run),
            facts=_training_facts(run),
        )


def _begun_from(begun: Mapping[str, Any], documents: Documents) -> Iterator[Entry]:
    encoder = str(begun.get("encoder", ""))
    before = begun.get("provenance")
    before = before if isinstance(before, dict) else {}
    if isinstance(before.get("init"), dict):
        yield from _begun_from(before["init"], documents)
    if "imported_from" in before:
        yield _imported(before, encoder)
        return
    steps = f"{count(before['step'], 'step')}" if isinstance(before.get("step"), int) else ""
    on = f"on {named(str(before['store']))}" if before.get("store") else ""
    yield Entry(
        step="Weights to begin from",
        key=str(begun.get("sha256") or encoder),
        name=named(encoder),
        text=" ".join(part for part in ("pre-trained", steps, on) if part),
        facts=_some(("sha256", _short(begun.get("sha256"))), ("tokenizer", str(before.get("tokenizer") or ""))),
    )


def _imported(origin: Mapping[str, Any], name: str) -> Entry:
    place = named(str(origin["imported_from"]))
    return Entry(
        step="Weights to begin from",
        key=str(origin.get("sha256") or place),
        name=named(name) if name else place,
        text=f"imported from {place}" + (f", weights of {origin['family']}" if origin.get("family") else ""),
        facts=_some(("sha256", _short(_one(origin.get("sha256")))), ("revision", str(origin.get("revision") or ""))),
    )


def _images(store: TokenStore) -> Entry:
    source = store.info.source
    kind = _SOURCES.get(source.kind, source.kind)
    held_out = int(store.shards.num_held_out.sum())
    unusual = store.info.decoding.unusual()
    texts = [
        f"{count(held_out)} of them held out to measure on" if held_out else "none held out",
        f"decoded with {unusual}" if unusual else "",
    ]
    return Entry(
        step="Images",
        key=source.digest,
        name=f"{count(len(store), 'image')} in {kind}",
        text="; ".join(text for text in texts if text),
        facts=_some(
            ("identity", _short(source.digest)),
            ("in the source", count(source.num_images, "image") if source.num_images else ""),
            ("shards", count(source.num_shards)),
        ),
    )


def _store(
    location: str, origin: Mapping[str, Any], store: TokenStore | None, trouble: str, run: RunFiles | None
) -> Entry:
    used = origin.get("store_sha256") or (run.data.get("store_sha256") if run else None)
    if store is None:
        views = origin.get("views")
        return Entry(
            step="Token store",
            key=str(used or location),
            name=named(location),
            text=f"{count(views, 'view')} of each image" if isinstance(views, int) else "",
            facts=_some(("identity", _short(used))),
            note=("not at hand", trouble),
        )
    info = store.info
    has_changed = used is not None and used != store.index_sha256
    views = f"{count(info.views, 'view')} of each image" if info.views else "views drawn in training"
    augment = info.augment
    return Entry(
        step="Token store",
        key=str(used or location),
        name=named(location),
        text=f"{views}, {info.img_size} px in {info.grid_size} x {info.grid_size} words, seed {info.seed}",
        facts=_some(
            ("identity", _short(used or store.index_sha256)),
            ("crops", f"{percent(augment.scale[0])} to {percent(augment.scale[1])} of the area"),
            ("mirrored", percent(augment.flip)),
            (
                "colours",
                f"brightness {augment.brightness}, contrast {augment.contrast}, saturation {augment.saturation}",
            ),
            ("made with", ", ".join(info.versions)),
        ),
        note=("changed since", "the store is no longer the one that was trained on; other words, or other images")
        if has_changed
        else None,
    )


def _downstream(run: RunFiles, documents: Documents) -> Iterator[Entry]:
    # What a probe writes beside its model knows more of the images.
    origin = {**next(iter(run.probes.values()), {}), **run.origin}
    encoder = str(origin.get("encoder") or run.settings.get("encoder") or "")
    before = origin.get("encoder_provenance")
    before = before if isinstance(before, dict) else {}
    if encoder == "random":
        yield Entry(step="Weights to begin from", key="random", name="random weights", text="no pre-training")
    elif encoder:
        folder = documents.run_of(encoder)
        yield from _pretraining(
            folder.path if folder else None,
            before or (folder.origin if folder else {}),
            folder,
            documents,
            name=named(encoder),
        )
    data = origin.get("data")
    if data:
        labels = origin.get("num_labels") or origin.get("num_train_images")
        names = run.made.get("class_names") or origin.get("class_names") or ()
        classes = len(names) or origin.get("num_classes")
        texts = [
            count(labels, "labelled image") if labels else "",
            count(classes, "class", plural="classes") if isinstance(classes, int) and classes else "",
        ]
        yield Entry(
            step="Labelled images",
            key=f"{origin.get('source_sha256')} {labels} {data}",
            name=named(str(data)),
            text=", ".join(part for part in texts if part),
            facts=_some(
                ("identity of all", _short(origin.get("source_sha256"))),
                ("identity of those chosen", _short(origin.get("data_sha256"))),
            ),
        )
    yield Entry(
        step="Frozen features" if run.kind == "probe" else "Fine-tuning",
        key=str(run.path.resolve()),
        name=run.name,
        text=_training_text(run, origin),
        made=_made(run),
        facts=_training_facts(run),
    )
    measured = origin.get("validation_data")
    if measured:
        number = origin.get("num_images") or (origin.get("metrics") or {}).get("num_images")
        yield Entry(
            step="Measured on",
            key=str(origin.get("validation_sha256") or measured),
            name=named(str(measured)),
            text=count(number, "image") if number else "",
            facts=_some(("identity", _short(origin.get("validation_sha256")))),
            note=("no measure", "the model learned from these very images; others say what it is worth")
            if learned_from(origin, origin)
            else None,
        )


def _training_text(run: RunFiles | None, origin: Mapping[str, Any]) -> str:
    if run is None:
        step = origin.get("step")
        return count(step, "step") if isinstance(step, int) else ""
    shape = run.made.get("architecture")
    batch, seed = run.settings.get("train.global_batch_size"), run.settings.get("train.seed", run.settings.get("seed"))
    texts = [
        _shape_text(shape) if isinstance(shape, dict) else "",
        f"{count(run.step, 'step')} of {count(batch, 'image')}" if run.step and isinstance(batch, int) else "",
        recipe_text(run),
        f"seed {seed}" if seed is not None and run.kind != "probe" else "",
    ]
    return ", ".join(part for part in texts if part)


def _made(run: RunFiles | None) -> str:
    return when(run.starts[-1]) if run is not None and run.starts else ""


def _training_facts(run: RunFiles | None) -> tuple[tuple[str, str], ...]:
    if run is None or not run.starts:
        return ()
    start = run.starts[-1]
    packages = start.get("packages")
    return _some(
        ("machine", f"{count(start.get('world_size', 1), 'process', plural='processes')}, {start.get('device', '')}"),
        ("platform", str(start.get("platform", ""))),
        ("Python", str(start.get("python", ""))),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items()) if packages else ""),
        ("micro-batch", str(start.get("micro_batch_size") or "")),
        ("weights", _short(run.made.get("weights_sha256"))),
    )


def _shape_text(shape: Mapping[str, Any]) -> str:
    return (
        f"ViT of {count(shape.get('depth', 0), 'block')}, {shape.get('embed_dim')} wide, {shape.get('img_size')} px in "
        f"patches of {shape.get('patch_size')}"
    )


def _opened(location: str) -> tuple[TokenStore | None, str]:
    """Open the store of a run, if it is on this machine; its images need not be there."""
    if not location:
        return None, ""
    if is_remote(location):
        return None, "it is remote, and is not asked for"
    if not os.path.exists(location):  # gone, or the run was carried here: nothing to make anew
        return None, f"{named(location)} is not on this machine"
    try:
        return open_store(location, check_images=False), ""
    except (InputError, OSError) as error:
        return None, str(error).replace(os.path.realpath(location), named(location)).replace(location, named(location))


def _some(*rows: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in rows if value)


def _one(value: Any) -> Any:
    return next(iter(value.values()), None) if isinstance(value, dict) else value


def _short(identity: Any) -> str:
    return f"`{str(identity)[:_IDENTITY_CHARS]}`" if identity else ""

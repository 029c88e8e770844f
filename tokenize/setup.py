"""What a run begins with: the tokenizer, where and how it runs, and the store, whose settings are written first.

The way the tokenizer runs has a fingerprint, which makes tokens comparable bit for bit. Settings must not change once
they are written.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import pyarrow
import torch

from beit import __version__
from beit.common.errors import InputError, require
from beit.common.processes.cores import available_cores, keep_freed_memory
from beit.common.shards.schema import (
    INDEX_FILE,
    LATER_SETTINGS,
    LEASE_PREFIX,
    STORE_FILE,
    TOKENS_DIR,
    Execution,
    StoreInfo,
    TokenizerInfo,
    manifest_name,
)
from beit.common.storage.documents import but_is, read_document, write_document
from beit.common.views import compute_canary, replay_versions
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.plan import StorePlan, with_range
from beit.tokenize.shards.encode import RankTokenizer, ViewEncoder
from beit.tokenize.store.documents import StoreFiles, list_entries
from beit.tokenize.store.leases import Leases

logger = logging.getLogger(__name__)


def set_up_tokenizer(
    config: TokenizeConfig, local_rank: int, threads: int, given: ViewEncoder | None = None
) -> RankTokenizer:
    """Load the tokenizer that the settings name, or take the given one, on the device of this rank."""
    if not config.views:
        return RankTokenizer(versions=library_versions())
    device = choose_device(config, local_rank)
    if device == "cpu":
        keep_freed_memory()
    from beit.common.tokenizer import choose_dtype, load_tokenizer

    dtype = choose_dtype(config.dtype, device)
    tokenizer, is_compiled = given, False
    if tokenizer is None:
        loaded = load_tokenizer(config.tokenizer, device=device, dtype=dtype, compile_encoder=config.compile_encoder)
        loaded.require_grid(config.grid_size)
        tokenizer, is_compiled = loaded, loaded.is_compiled
    require(
        tokenizer.vocab_size <= 1 << 16,
        f"tokenizer ({config.tokenizer}) has a vocabulary of {tokenizer.vocab_size}; a store holds 16-bit ids",
    )
    info = TokenizerInfo(
        name=config.tokenizer,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        downsampling=tokenizer.downsampling,
    )
    execution = describe_execution(config, device=device, dtype=dtype, is_compiled=is_compiled, threads=threads)
    return RankTokenizer(library_versions(), tokenizer, info, execution)


def choose_device(config: TokenizeConfig, local_rank: int) -> str:
    """Return the torch device of this rank: "cpu" or "cuda:N"."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cuda" and not num_gpus:
        raise InputError('device ("cuda") needs a GPU, and torch sees none; use device="cpu" or a CUDA build of torch')
    if config.device == "cpu" or not num_gpus:
        return "cpu"
    return f"cuda:{local_rank % num_gpus}"


def describe_execution(
    config: TokenizeConfig, *, device: str, dtype: str, is_compiled: bool, threads: int
) -> Execution:
    """Return the fingerprint of this rank."""
    if device == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
    else:
        capability = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return Execution(
        device=device.partition(":")[0],
        capability=capability,
        dtype=dtype,
        is_compiled=is_compiled,
        micro_batch_size=config.micro_batch_size,
        threads=threads,
        torch_version=str(torch.__version__),
    )


def library_versions() -> tuple[str, ...]:
    """Return "name version" of everything that shapes the bytes of a store."""
    versions = replay_versions() | {"beit": __version__, "pyarrow": pyarrow.__version__, "torch": torch.__version__}
    return tuple(f"{name} {version}" for name, version in sorted(versions.items()))


def count_workers(config: TokenizeConfig) -> int:
    """Return the number of decoding threads of this rank: its share of the cores unless given."""
    # As torchrun, DeepSpeed's launcher and SLURM say how many ranks this machine has; SLURM's list begins as "4(x3),2".
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
    given = next((os.environ[name] for name in names if os.environ.get(name)), "1")
    match = re.match(r"[1-9][0-9]*", given)
    ranks_here = int(match.group()) if match else 1
    return config.workers or max(1, available_cores() // ranks_here)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch operations with `count` threads, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_place(files: StoreFiles, *, resume: str = "auto") -> None:
    """Refuse a place that cannot become, or go on as, a store; called before anything is written."""
    require(resume in ("auto", "never"), f"--resume ({resume}) must be auto or never for tokenize")
    entries, store = list_entries(files), files.location
    if STORE_FILE in entries:
        require(resume == "auto", f"store ({store}) exists; --resume never starts a new one: name another folder")
        return
    ours = (LEASE_PREFIX, f"{STORE_FILE}.tmp.")  # all that a run leaves that was killed at its very start
    foreign = [name for name in entries if not name.startswith(ours)]
    require(not foreign, f"store ({store}) is not empty and not a token store{but_is(store)}; name another folder")


def recorded_threads(files: StoreFiles) -> int:
    """Return the thread count a store was begun with; 0 if it is new."""
    place = files / STORE_FILE
    return read_document(StoreInfo, place).execution.threads if place.exists() else 0


def build_info(config: TokenizeConfig, plan: StorePlan, tokenizing: RankTokenizer) -> StoreInfo:
    """Return store.json as these settings would begin it."""
    return StoreInfo(
        tokenizer=tokenizing.info,
        views=config.views,
        img_size=config.img_size,
        patch_size=config.patch_size,
        grid_size=config.grid_size,
        seed=config.seed,
        augment=config.augment,
        source=plan.source_info,
        packing=plan.packing,
        class_names=plan.class_names,
        held_out=config.held_out,
        held_out_by=plan.held_out_by,
        canary=compute_canary(),
        image_root=plan.image_root,
        execution=tokenizing.execution,
        versions=tokenizing.versions,
    )


def begin_or_continue(
    files: StoreFiles, wanted: StoreInfo, leases: Leases, config: TokenizeConfig, plan: StorePlan
) -> StoreInfo:
    """Write store.json, or check that an existing one agrees, and return what holds for the store."""
    store = files.location
    with leases.step("store"):
        files.place.remove_temporaries(STORE_FILE, INDEX_FILE)
        document = files / STORE_FILE
        if not document.exists():
            write_document(document, with_range(wanted, plan))
        existing = read_document(StoreInfo, document)
        if _agree(files, existing, wanted, config):
            logger.info("%s; going on with them as they are", _changed(store))
        source = replace(existing.source, stamp=wanted.source.stamp or existing.source.stamp)
        merged = replace(existing, image_root=wanted.image_root, source=source)
        if existing.execution != wanted.execution:
            merged = replace(merged, mixed_execution=True)
        if merged != existing:
            write_document(document, merged)
    return merged


def check_agreement(files: StoreFiles, wanted: StoreInfo, config: TokenizeConfig) -> None:
    """Refuse settings that a store, if it has been begun, was begun without; called before anything is written."""
    document = files / STORE_FILE
    if document.exists():
        _agree(files, read_document(StoreInfo, document), wanted, config)


def _agree(files: StoreFiles, existing: StoreInfo, wanted: StoreInfo, config: TokenizeConfig) -> bool:
    """As `_require_agreement`; of a store that failed before its first shard, say that there is little to lose."""
    try:
        return _require_agreement(files.location, existing, wanted, config)
    except InputError as refusal:
        tokens = (files / TOKENS_DIR).files()
        if (files / INDEX_FILE).exists() or any(file.path.endswith(manifest_name("")) for file in tokens):
            raise
        raise InputError(
            f"{refusal}; no shard of it has tokens yet, so removing it, if no other process is at work on it, loses "
            "packed images at most"
        ) from None


def _require_agreement(store: str, existing: StoreInfo, wanted: StoreInfo, config: TokenizeConfig) -> bool:
    """Refuse what a store was begun without; returns whether its source has other times since, and may have."""
    wanted = replace(wanted, held_out_by=existing.held_out_by)  # as it was begun
    if existing.source.range == wanted.source.range:
        wanted = replace(wanted, source=replace(wanted.source, range_found=existing.source.range_found))
    _require_same_tokenizer(store, existing.tokenizer, wanted.tokenizer)
    _require_same(store, existing.settings(), wanted.settings())
    is_changed = bool(existing.source.stamp) and wanted.source.stamp not in ("", existing.source.stamp)
    if is_changed and not config.allow_source_change:
        raise InputError(
            f"{_changed(store)}; give them their times again (cp -p and rsync -t keep them), take them as they are "
            "with --set allow_source_change=true, or name another folder for the store"
        )
    if existing.execution != wanted.execution and not config.allow_mixed:
        _refuse_execution(store, existing.execution, wanted.execution)
    return is_changed


def _changed(store: str) -> str:
    return f"files of the source have other times than when store ({store}) was begun, as after edits or a plain copy"


def _require_same_tokenizer(store: str, existing: TokenizerInfo | None, wanted: TokenizerInfo | None) -> None:
    """Refuse another tokenizer than the store's, by the names of both."""
    if existing is None or wanted is None or existing.fingerprint == wanted.fingerprint:
        return
    old, new = (f"{info.name} (fingerprint {info.fingerprint[:12]})" for info in (existing, wanted))
    way_out = f"use --tokenizer {existing.name}" if existing.name != wanted.name else "restore that one"
    raise InputError(f"store ({store}) was begun with tokenizer {old}, not {new}; {way_out}, or name another folder")


def _require_same(store: str, existing: dict[str, str], wanted: dict[str, str]) -> None:
    for name in sorted(existing.keys() | wanted.keys()):
        default = LATER_SETTINGS.get(name, "none")
        old, new = existing.get(name, default), wanted.get(name, default)
        if old == new:
            continue
        if name == "canary":
            raise InputError(
                f"store ({store}) was begun with another version of Pillow or libjpeg, which decodes or resizes "
                "differently; install that version (versions in store.json) or name another folder"
            )
        if name == "source.digest":
            raise InputError(f"the source changed since store ({store}) was begun; name another folder for the store")
        raise InputError(
            f"{name} ({new}) differs from that of store ({store}), {old}; use the same or name another folder"
        )


def _refuse_execution(store: str, existing: Execution, wanted: Execution) -> None:
    old, new = asdict(existing), asdict(wanted)
    name = next(name for name in old if old[name] != new[name])
    raise InputError(
        f"{name} ({new[name]!r}) differs from what store ({store}) was begun with, {old[name]!r}: a few tokens would "
        "differ; use the same, or allow it with --set allow_mixed=true"
    )

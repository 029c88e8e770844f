"""Beginning or continuing a store: its settings are written first and must not change afterwards."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace

from beit.common.errors import InputError, require
from beit.common.shards.schema import INDEX_FILE, STORE_FILE, Execution, StoreInfo, TokenizerInfo
from beit.common.views import compute_canary
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.execution import library_versions
from beit.tokenize.plan import StorePlan
from beit.tokenize.store.documents import StoreFiles, list_entries, read_document, write_document
from beit.tokenize.store.leases import LEASE_PREFIX, Leases

logger = logging.getLogger(__name__)


def check_place(files: StoreFiles, *, resume: str = "auto") -> None:
    """Refuse a place that cannot become, or go on as, a store; called before anything is written.

    Raises:
        InputError: it is a file, it holds something else, it cannot be written, or `resume` forbids to continue it.
    """
    require(resume in ("auto", "never"), f"--resume ({resume}) must be auto or never for tokenize")
    entries, store = list_entries(files), files.location
    if STORE_FILE in entries:
        require(resume == "auto", f"store ({store}) exists; --resume never starts a new one: name another folder")
        return
    ours = (LEASE_PREFIX, f"{STORE_FILE}.tmp.")  # all that a run leaves that was killed at its very start
    foreign = [name for name in entries if not name.startswith(ours)]
    require(not foreign, f"store ({store}) is not empty and not a token store; name another folder")


def recorded_threads(files: StoreFiles) -> int:
    """Return the thread count a store was begun with; 0 if it is new."""
    place = files / STORE_FILE
    return read_document(StoreInfo, place).execution.threads if place.exists() else 0


def build_info(
    config: TokenizeConfig, plan: StorePlan, tokenizer: TokenizerInfo | None, execution: Execution
) -> StoreInfo:
    """Return store.json as these settings would begin it."""
    return StoreInfo(
        tokenizer=tokenizer,
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
        canary=compute_canary(),
        image_root=plan.image_root,
        execution=execution,
        versions=library_versions(),
    )


def begin_or_continue(files: StoreFiles, wanted: StoreInfo, leases: Leases, *, allow_mixed: bool) -> StoreInfo:
    """Write store.json, or check that an existing one agrees, and return what holds for the store.

    Raises:
        InputError: a setting differs; names it with both values.
    """
    store = files.location
    with leases.step("store"):
        files.place.remove_temporaries(STORE_FILE, INDEX_FILE)
        document = files / STORE_FILE
        if not document.exists():
            write_document(document, wanted)
        existing = read_document(StoreInfo, document)
        _require_same(store, existing.settings(), wanted.settings())
        merged = replace(existing, image_root=wanted.image_root)
        if existing.execution != wanted.execution:
            if not allow_mixed:
                _refuse_execution(store, existing.execution, wanted.execution)
            merged = replace(merged, mixed_execution=True)
        if merged != existing:
            write_document(document, merged)
    return merged


def _require_same(store: str, existing: dict[str, str], wanted: dict[str, str]) -> None:
    for name in sorted(existing.keys() | wanted.keys()):
        old, new = existing.get(name, "none"), wanted.get(name, "none")
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

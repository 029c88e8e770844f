"""Beginning or continuing a store: its settings are written first and must not change afterwards."""

from __future__ import annotations

import logging
import re
from dataclasses import asdict, replace
from pathlib import Path

from beit.common.errors import InputError, require
from beit.common.files import write_json
from beit.common.store_schema import (
    INDEX_FILE,
    STORE_FILE,
    TOKENS_DIR,
    Execution,
    StoreInfo,
    TokenizerInfo,
    read_document,
    to_json,
)
from beit.common.views import compute_canary
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.execution import library_versions
from beit.tokenize.leases import LEASE_PREFIX, Leases
from beit.tokenize.plan import StorePlan
from beit.tokenize.writer import remove_temporaries

logger = logging.getLogger(__name__)

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def check_store_folder(store: Path, *, resume: str = "auto") -> None:
    """Refuse a folder that cannot become, or go on as, a store; called before anything is written.

    Raises:
        InputError: it is a file, it holds something else, or `resume` forbids to continue it.
    """
    require(resume in ("auto", "never"), f"--resume ({resume}) must be auto or never for tokenize")
    require_local(store)
    require(not store.exists() or store.is_dir(), f"store ({store}) is a file; name a folder")
    if not store.exists():
        return
    ours = (LEASE_PREFIX, f"{STORE_FILE}.tmp.")  # all that a run leaves that was killed at its very start
    content = [path.name for path in store.iterdir() if not path.name.startswith(ours)]
    if (store / STORE_FILE).exists():
        require(resume == "auto", f"store ({store}) exists; --resume never starts a new one: name another folder")
        return
    require(not content, f"store ({store}) is not empty and not a token store; name another folder")


def require_local(store: Path) -> None:
    """Refuse a URL as the place of a store that is written.

    Raises:
        InputError: it is one.
    """
    url = _URL.match(str(store))  # one slash is what a path leaves of two
    require(
        url is None,
        f"store ({store}) is a URL, and stores are written on a file system: tokenise into a local folder "
        "and copy it, index.parquet last; beit pretrain reads it from there",
    )


def recorded_threads(store: Path) -> int:
    """Return the thread count a store was begun with; 0 if it is new."""
    path = store / STORE_FILE
    return read_document(StoreInfo, path).execution.threads if path.exists() else 0


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
        class_names=tuple(plan.source.class_names) if plan.source.class_names is not None else None,
        held_out=config.held_out,
        canary=compute_canary(),
        image_root=plan.image_root,
        execution=execution,
        versions=library_versions(),
    )


def begin_or_continue(store: Path, wanted: StoreInfo, leases: Leases, *, allow_mixed: bool) -> StoreInfo:
    """Write store.json, or check that an existing one agrees, and return what holds for the store.

    Raises:
        InputError: a setting differs; names it with both values.
    """
    path = store / STORE_FILE
    with leases.step("store"):
        remove_temporaries(store, STORE_FILE, INDEX_FILE)
        if not path.exists():
            write_json(path, to_json(wanted))
            (store / TOKENS_DIR).mkdir(exist_ok=True)
            return wanted
        existing = read_document(StoreInfo, path)
        _require_same(store, existing.settings(), wanted.settings())
        merged = replace(existing, image_root=wanted.image_root)
        if existing.execution != wanted.execution:
            if not allow_mixed:
                _refuse_execution(store, existing.execution, wanted.execution)
            merged = replace(merged, mixed_execution=True)
        (store / TOKENS_DIR).mkdir(exist_ok=True)
        if merged != existing:
            write_json(path, to_json(merged))
    return merged


def _require_same(store: Path, existing: dict[str, str], wanted: dict[str, str]) -> None:
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


def _refuse_execution(store: Path, existing: Execution, wanted: Execution) -> None:
    old, new = asdict(existing), asdict(wanted)
    name = next(name for name in old if old[name] != new[name])
    raise InputError(
        f"{name} ({new[name]!r}) differs from what store ({store}) was begun with, {old[name]!r}: a few tokens would "
        "differ; use the same, or allow it with --set allow_mixed=true"
    )

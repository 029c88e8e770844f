"""A run directory of `beit pretrain`, opened to look at: its settings, its store, and the order of its data.

Nothing here needs the machine, the number of ranks or the checkpoints of the run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.common.config import load_config
from beit.common.errors import InputError, require
from beit.common.runs.kinds import PRETRAIN, require_command
from beit.common.runs.layout import CONFIG, DATA, ENCODER
from beit.common.shards.token_store import TokenStore
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.paths import is_remote
from beit.common.store import open_store
from beit.common.vit.description import read_encoder_config
from beit.pretrain.config import PretrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run to look at."""

    path: Path
    """Run directory."""
    config: PretrainConfig
    """Its settings."""
    store: TokenStore
    """What it trains on."""
    data: dict[str, Any]
    """What `record_data` wrote; empty in runs of before."""


def record_data(run: Path, store: TokenStore, state: dict[str, Any]) -> None:
    """Write down what a run trains on, so that its batches can be rebuilt even if it never reaches a checkpoint.

    `state` is that of the data at step 0, from `TrainingData.state`.
    """
    location = store.location if is_remote(store.location) else str(Path(store.location).resolve())
    try:
        earlier = _read_data(run)
    except InputError as error:
        logger.warning("%s; it is written anew", error)
        earlier = {}
    # A resumed run keeps its order, and its lanes, wherever its store lies by now.
    order = earlier if earlier.get("store_sha256") == store.index_sha256 else state
    write_json(run / DATA, {**order, "store": location, "store_sha256": store.index_sha256})


def _read_data(run: Path) -> dict[str, Any]:
    """Return what `record_data` wrote; empty where there is nothing."""
    if not (run / DATA).is_file():
        return {}
    data = read_json(run / DATA)
    is_sound = isinstance(data, dict) and all(isinstance(data.get(name, ""), str) for name in ("store", "store_sha256"))
    is_sound = is_sound and isinstance(data.get("lanes", 1), int)
    require(is_sound, f"{run / DATA} is damaged: it does not say what the run trains on; delete it and name --store")
    return dict(data)


def open_stored_run(run: Path, store: str | None) -> StoredRun:
    """Open a run of `beit pretrain`; its token store is at `store` now, or where the run says."""
    if not (run / CONFIG).is_file():
        raise InputError(f"{run} is not a run of beit pretrain (no config.toml); name the folder given as RUN")
    require_command(run, PRETRAIN, is_read=True)
    config = load_config(PretrainConfig, recipe=run / CONFIG, overrides=(), recipe_dir=run)
    data = _read_data(run) or _from_encoder(run)
    location = store or data.get("store")
    if location is None:
        raise InputError(f"{run} does not say which store it was trained on; name it with --store")
    try:
        opened = open_store(location, check_images=not is_remote(str(location)))
    except InputError as error:
        if store is not None:
            raise
        raise InputError(
            f"the store of this run cannot be opened ({error}); if it has moved, name it with --store"
        ) from None
    if data.get("store_sha256", opened.index_sha256) != opened.index_sha256:
        raise InputError(
            f"{opened.location} (index {opened.index_sha256[:12]}) is not the store of {run}, which was "
            f"{data.get('store', 'another')} (index {data['store_sha256'][:12]}); name that one with --store"
        )
    return StoredRun(run, config, opened, data)


def _from_encoder(run: Path) -> dict[str, Any]:
    """Return the store of a run that has no data.json, from its encoder."""
    if not (run / ENCODER).is_dir():
        return {}
    origin = read_encoder_config(run / ENCODER, need_weights=False).provenance
    return {name: origin[name] for name in ("store", "store_sha256") if name in origin}

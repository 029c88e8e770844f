"""The names of the files of a run, once."""

from __future__ import annotations

CHECKPOINTS, CONFIG, ENVIRONMENT, RUN_ID = "checkpoints", "config.toml", "environment.json", "run_id"

"""What the tokenizers of all kinds say of themselves alike: in config.json, and in the README beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.common.config import config_to_dict
from beit.common.storage.files import write_atomic
from beit.tokenize.tokenizer_training.data import Images

CARD = "README.md"
"""Written last, so that whoever finds it finds a finished tokenizer."""


def training_record(source: str, images: Images, config: Any, **more: Any) -> dict[str, Any]:
    """Return what config.json says of a tokenizer's making: `more`, beside what all kinds have."""
    return {
        "source": source,
        "index_sha256": images.train.index_sha256,
        "num_train_images": int(images.train.shard_sizes.sum()),
        "num_held_out_images": int(images.held_out.shard_sizes.sum()),
        **more,
        "settings": config_to_dict(config),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The README of one tokenizer; `training` below is its record."""

    what: str
    """What becomes one of its words, and how: whole sentences."""
    notes: Sequence[str] = ()
    """Sentences after the fingerprint, a line each."""
    gives: str = ""
    """What `encode` gives, as a comment."""
    facts: Sequence[str]
    """Of the network, as list entries."""
    options: str = ""
    """Of the command that made it, after SOURCE and OUT."""
    made: str
    """When it was made, after the date: the step, or nothing."""
    data: str
    """After "images of SOURCE": how they were used; begins with a comma where it says something."""
    further: Sequence[str] = ()
    """More list entries."""
    licence_of: str
    """What has licences."""
    measured: Mapping[str, str]
    """Rows of the table; empty where nothing has been measured yet."""
    measured_on: str
    """What they were measured on, as it reads between "On" and the colon."""

    def write(self, folder: Path, training: Mapping[str, Any], *, fingerprint: str) -> None:
        """Write it into the folder of the tokenizer."""
        source, held_out = training["source"], training["num_held_out_images"]
        command = f"beit tokenizer train {source} {folder.name}{self.options}"
        entries = [
            *self.facts,
            f"Made by `{command}`, {time.strftime('%Y-%m-%d')}{self.made}; all settings: `config.toml`.",
            f"Data: {training['num_train_images']} images of `{source}`{self.data}; {held_out} further images were "
            "held out.",
            *self.further,
            f"Licence: (yours to fill in: of {self.licence_of})",
        ]
        lines = ["# Image tokenizer", "", f"{self.what} Fingerprint `{fingerprint}`.", *self.notes, ""]
        lines += [
            "    from beit.common.tokenizer import load_tokenizer",
            f'    token_ids = load_tokenizer("{folder}").encode(images){self.gives}',
            "",
            *(f"- {entry}" for entry in entries),
        ]
        if self.measured:
            rows = [f"| {what} | {value} |" for what, value in self.measured.items()]
            lines += ["", "## Measured", "", f"On {self.measured_on}:", "", "| what | value |", "| --- | --- |", *rows]
        write_atomic(folder / CARD, ("\n".join(lines) + "\n").encode())

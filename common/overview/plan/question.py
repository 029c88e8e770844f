"""What `beit plan` is asked: images, settings of three stages, and machines."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from beit.common.errors import require
from beit.common.forecast.hardware import Hardware, check_name, named, this_machine
from beit.common.images.decoding import MAX_PIXELS
from beit.common.images.large.tiles import Tiling
from beit.common.overview.plan.amounts import parse_count

_PREFIXES = ("tokenize.", "finetune.")
"""Of --set, for settings of other stages than pre-training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What the command was given; its help says what each means."""

    images: str
    recipe: str | None = None
    overrides: Sequence[str] = ()
    views: int | None = None
    labels: str | None = None
    gpus: int | None = None
    machines: int = 1
    gpu: str | None = None
    measure: bool = False

    def settings(self, stage: str) -> list[str]:
        """Return what --set says of a stage: pretrain, tokenize or finetune."""
        if stage == "pretrain":
            return [word for word in self.overrides if not word.startswith(_PREFIXES)]
        return [word.removeprefix(f"{stage}.") for word in self.overrides if word.startswith(f"{stage}.")]

    @property
    def tiling(self) -> Tiling | None:
        """How images are to be cut, as --set tokenize.tile=1024 says; None where they are not."""
        settings = [word for word in self.settings("tokenize") if word.startswith(("tile=", "overlap="))]
        texts = dict(word.split("=", 1) for word in settings)
        numbers = {name: int(text) for name, text in texts.items() if text.isdecimal()}  # loading them tells of others
        return Tiling(**numbers) if numbers.get("tile") else None

    @property
    def max_pixels(self) -> int:
        """The most that an image may have, as --set tokenize.source.max_megapixels=120 says."""
        name = "source.max_megapixels="
        given = [word.removeprefix(name) for word in self.settings("tokenize") if word.startswith(name)]
        with suppress(ValueError):  # loading the settings says what is wrong
            return round(float(given[-1]) * 1e6) if given else MAX_PIXELS
        return MAX_PIXELS

    @property
    def looking(self) -> dict[str, Any]:
        """What decides how images are looked at, as `look_at` takes it."""
        return {"tiling": self.tiling, "max_pixels": self.max_pixels}

    @property
    def num_labels(self) -> int | None:
        """Labelled images to fine-tune on."""
        if self.labels is None:
            return None
        number = parse_count(self.labels)
        require(number is not None, f"--labels ({self.labels}) must be a number of images, such as 500 or 1.28M")
        return number

    def hardware(self) -> Hardware:
        """Return what it is to run on."""
        if self.gpu is None:
            here = this_machine(num_devices=self.gpus)
            return replace(here, num_devices=here.num_devices * self.machines, num_machines=self.machines)
        check_name(self.gpu)
        require(
            not self.measure, f"--measure measures this machine, and --gpu ({self.gpu}) names another; leave one out"
        )
        return named(self.gpu, num_devices=(self.gpus or 1) * self.machines, num_machines=self.machines)

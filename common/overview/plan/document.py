"""What a plan says, apart from how it is shown, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from beit.common.forecast.hardware import Hardware
from beit.common.forecast.loading import PHOTO_MEGAPIXELS
from beit.common.forecast.rules import Problem
from beit.common.overview.plan.advice import Advice
from beit.common.storage.documents import Format

FORMAT = Format("beit-plan", 1)

Facts = Sequence[tuple[str, str]]
"""What there is to know of a stage: label and words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """What is planned for."""

    name: str
    """As the user gave it; empty for a number."""
    count: int
    """Images."""
    mean_bytes: float
    """Of an image as it is."""
    is_counted: bool
    """Whether they were looked at; of a number everything is assumed."""
    side_px: float | None = None
    """Typical short side; None where nobody knows."""
    megapixels: float = PHOTO_MEGAPIXELS
    """Of a typical one."""
    num_cut: int | None = None
    """Where images are cut into tiles, and the count is of those: the images."""
    pixels_at_once: int = 0
    """Where images are cut into tiles: pixels of the largest part of one that is decoded at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One command of the plan."""

    name: str
    """tokenize, pretrain or finetune."""
    short: str
    """What it does, in a few words."""
    seconds: float | None
    """None where nobody knows."""
    memory_bytes: float | None
    """Of a GPU, or on a processor of all ranks together."""
    disk_bytes: float
    """That stays."""
    facts: Facts
    """What there is to know of it."""
    numbers: Mapping[str, Any]
    """The same for programs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRow:
    """Memory of a device at one stage of ZeRO, over micro-batches."""

    zero_stage: int
    """0 to 3."""
    bytes_by_micro_batch: Mapping[int, float]
    """Most at once, by images at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that `beit plan` says."""

    images: Images
    """Of which."""
    num_labels: int | None
    """Labelled ones."""
    hardware: Hardware
    """On what."""
    recipe: str
    """Of the pre-training."""
    recipe_reason: str
    """Why that one; empty where the user named it."""
    stages: tuple[Stage, ...]
    """In their order."""
    memory: tuple[MemoryRow, ...]
    """Of the pre-training."""
    micro_batch_size: int | None
    """What the pre-training will take."""
    zero_stage: int
    """As set."""
    problems: tuple[Problem, ...]
    """Rules that will be broken, those that stop a command first."""
    advice: tuple[Advice, ...]
    """What weighs most first."""
    commands: tuple[str, ...]
    """That do what is planned."""
    assumptions: tuple[str, ...]
    """What nobody measured here, with what would tell."""

    @property
    def is_possible(self) -> bool:
        """Whether no command would refuse or fail."""
        return not any(problem.is_fatal for problem in self.problems)

    @property
    def device_bytes(self) -> int | None:
        """Memory of a GPU, or what each rank has of its machine; None where nobody knows."""
        room, hardware = self.hardware.memory_bytes, self.hardware
        if room is None or hardware.device == "cuda":
            return room
        return room // hardware.devices_per_machine

    def total_seconds(self) -> float | None:
        """Return the time of all stages; None where that of one is unknown."""
        seconds = [stage.seconds for stage in self.stages]
        return None if None in seconds else sum(filter(None, seconds))

    def to_json(self) -> dict[str, Any]:
        """Return the plan for programs: bytes, seconds, counts; nothing rounded."""
        memory = [
            {
                "zero_stage": row.zero_stage,
                "bytes_by_micro_batch": {str(k): v for k, v in row.bytes_by_micro_batch.items()},
            }
            for row in self.memory
        ]
        stages = {
            stage.name: {
                "seconds": stage.seconds,
                "memory_bytes": stage.memory_bytes,
                "disk_bytes": stage.disk_bytes,
                **stage.numbers,
            }
            for stage in self.stages
        }
        return FORMAT.header() | {
            "images": asdict(self.images),
            "num_labels": self.num_labels,
            "hardware": asdict(self.hardware),
            "recipe": {"name": self.recipe, "reason": self.recipe_reason},
            "stages": stages,
            "memory": memory,
            "micro_batch_size": self.micro_batch_size,
            "zero_stage": self.zero_stage,
            "is_possible": self.is_possible,
            "problems": [asdict(problem) for problem in self.problems],
            "advice": [asdict(advice) for advice in self.advice],
            "commands": list(self.commands),
            "assumptions": list(self.assumptions),
        }

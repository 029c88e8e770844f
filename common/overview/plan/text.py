"""A plan on a terminal of 80 columns: times, memory and disk first, then what each stage does, then what to mind."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from beit.common.forecast.hardware import Hardware
from beit.common.forecast.words import in_gb, in_words
from beit.common.overview.plan.amounts import large
from beit.common.overview.plan.document import Images, MemoryRow, Plan, Stage
from beit.common.pages.numbers import ABSENT, count
from beit.common.pages.tables import aligned, columns, folded

_INDENT = "  "


def plan_text(plan: Plan) -> str:
    """Write all of a plan."""
    blocks = [_heading(plan), _summary(plan), _problems(plan)]
    blocks += [_facts(stage) for stage in plan.stages if stage.facts]
    blocks += [_memory(plan), _advice(plan), _commands(plan.commands), _list("assumed", plan.assumptions)]
    return "\n\n".join(block for block in blocks if block)


def _heading(plan: Plan) -> str:
    images, recipe = images_words(plan.images), plan.recipe
    why = f" ({plan.recipe_reason})" if plan.recipe_reason else ""
    lines = [folded(f"{images} on {hardware_words(plan.hardware)}", indent=_INDENT)]
    if recipe:
        lines.append(folded(f"pre-trained with --recipe {recipe}{why}", indent=_INDENT))
    return "\n".join(lines)


def images_words(images: Images) -> str:
    """Write what is planned for: "photos/: 150 images of 107 kB"."""
    name = f"{images.name}: " if images.name else ""
    size = f" of {in_gb(images.mean_bytes)}" if images.is_counted else ""
    if images.num_cut is not None:
        return f"{name}{large(images.num_cut)} image{'s' * (images.num_cut != 1)}{size} in {large(images.count)} tiles"
    return f"{name}{large(images.count)} image{'s' * (images.count != 1)}{size}"


def hardware_words(hardware: Hardware) -> str:
    """Write what it is to run on: "16 V100 of 34 GB in 2 machines", "2 cores of this machine, 25 GB"."""
    memory = "" if hardware.memory_bytes is None else f" of {in_gb(hardware.memory_bytes)}"
    if hardware.device == "cpu":
        where = "" if hardware.num_machines == 1 else f" in each of {hardware.num_machines} machines"
        ranks = "" if hardware.num_devices == hardware.num_machines else f", {hardware.num_devices} ranks"
        return f"{count(hardware.cores, 'core')}{where} ({hardware.name}){ranks}{memory and ', memory' + memory}"
    where = "" if hardware.num_machines == 1 else f" in {hardware.num_machines} machines"
    return f"{hardware.num_devices} x {hardware.name}{memory}{where}"


def _summary(plan: Plan) -> str:
    per = "memory" if plan.hardware.device == "cpu" else "memory per GPU"
    rows = [("", "time", per, "disk", "")]
    rows += [
        (stage.name, _time(stage.seconds), _gb(stage.memory_bytes), _gb(stage.disk_bytes), stage.short)
        for stage in plan.stages
    ]
    memories = [stage.memory_bytes for stage in plan.stages if stage.memory_bytes is not None]
    total = _gb(sum(stage.disk_bytes for stage in plan.stages))
    rows.append(("in all", _time(plan.total_seconds()), _gb(max(memories, default=None)), total, ""))
    return textwrap.indent(aligned(rows, align="<>>><"), _INDENT)


def _time(seconds: float | None) -> str:
    return ABSENT if seconds is None else in_words(seconds)


def _gb(num_bytes: float | None) -> str:
    return ABSENT if num_bytes is None else in_gb(num_bytes)


def _facts(stage: Stage) -> str:
    width = max(columns(label) for label, _ in stage.facts) + 2
    hanging = _INDENT + " " * width
    lines = [
        folded(f"{_INDENT}{label}{' ' * (width - columns(label))}{words}", indent=hanging)
        for label, words in stage.facts
    ]
    return "\n".join([stage.name, *lines])


def _memory(plan: Plan) -> str:
    """Draw the table of micro-batches and stages of ZeRO."""
    if not plan.memory:
        return ""
    sizes = list(plan.memory[0].bytes_by_micro_batch)
    rows = [("images at a time", *(f"{size} " for size in sizes))]
    rows += [(f"ZeRO {row.zero_stage}", *(_cell(plan, row, size) for size in sizes)) for row in plan.memory]
    cells = "".join(cell for row in rows[1:] for cell in row)
    notes = ["* as planned"] if "*" in cells else []
    room = plan.device_bytes
    if room is not None and "(" in cells:
        notes.append(f"in brackets: more than the {in_gb(room)} it has")
    of = "a GPU" if plan.hardware.device == "cuda" else "a rank"
    lines = [f"memory of {of} while pre-training, in GB", textwrap.indent(aligned(rows, align="<>"), _INDENT)]
    return "\n".join([*lines, f"{_INDENT}{'; '.join(notes)}"] if notes else lines)


def _cell(plan: Plan, row: MemoryRow, size: int) -> str:
    needed = row.bytes_by_micro_batch[size]
    text = f"{needed / 1e9:.3g}" if needed < 1e11 else f"{needed / 1e9:.0f}"
    if plan.device_bytes is not None and needed > plan.device_bytes:
        return f"({text})"
    return f"{text}*" if (row.zero_stage, size) == (plan.zero_stage, plan.micro_batch_size) else f"{text} "


def _problems(plan: Plan) -> str:
    fatal = [problem for problem in plan.problems if problem.is_fatal]
    others = [problem for problem in plan.problems if not problem.is_fatal]
    parts = [
        _list(title, (str(problem) for problem in problems), mark=mark)
        for title, problems, mark in (("will fail", fatal, "x"), ("will work, but mind", others, "!"))
        if problems
    ]
    return "\n\n".join(parts)


def _advice(plan: Plan) -> str:
    lines = []
    for advice in plan.advice:
        lines.append(folded(f"{_INDENT}- {advice.what}", indent=_INDENT + "  "))
        lines.append(folded(f"{_INDENT}  ({advice.why}; docs/{advice.where})", indent=_INDENT + "   "))
    return "\n".join(["advice", *lines]) if lines else ""


def _list(title: str, entries: Iterable[str], *, mark: str = "-") -> str:
    lines = [folded(f"{_INDENT}{mark} {entry}", indent=_INDENT + "  ") for entry in entries]
    return "\n".join([title, *lines]) if lines else ""


def _commands(commands: Sequence[str]) -> str:
    return (
        "\n".join(["commands", *(line for command in commands for line in _folded_command(command))])
        if commands
        else ""
    )


def _folded_command(command: str) -> Iterator[str]:
    """Break a command between its words, so that it can be copied as it stands."""
    lines = textwrap.wrap(command, 76, break_long_words=False, break_on_hyphens=False)
    for number, line in enumerate(lines):
        rest = " \\" if number < len(lines) - 1 else ""
        yield f"{_INDENT}{'  ' * (number > 0)}{line}{rest}"

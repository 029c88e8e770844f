"""`beit export`: write a model in the form of another project, read it back with its library, compare, keep or refuse.

A target is a module of this room that knows one form. What it writes appears under its final name only after its own
library, where that can be imported, has computed the same as we do; nothing half-written is ever seen.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from beit.common.errors import RunFailed
from beit.common.pages.tables import aligned, folded
from beit.common.runs.outputs import check_new_folder
from beit.common.storage.files import atomic_folder
from beit.finetune.weights.export.source import (
    Dtype,
    ExportOptions,
    ExportSource,
    our_outputs,
    probe_images,
    read_source,
)

TOLERANCES: dict[Dtype, float] = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}
"""Of an output's largest value, or of 1 where that is smaller: two orders of summing differ by some 1e-6; the others
are what 11 and 8 bits leave of the weights, compared with the model in float32."""

_REASON = 300
"""Characters of somebody else's error that are shown."""

logger = logging.getLogger(__name__)

Run = Callable[[Tensor], dict[str, Tensor]]
Value = TypeVar("Value")


class Target(Protocol):
    """What the module of a target offers."""

    LIBRARY: str
    """That reads what is written, as people call it."""

    def write(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Path]:
        """Write a model into an empty folder and return the files, the most important first.

        Raises:
            InputError: the target has no place for such a model; one line that says which it has, before anything is
                written.
        """

    def reload(self, folder: Path, source: ExportSource) -> Run | None:
        """Load what was written with the library, as a user would, and return what runs it.

        That maps the images of `probe_images` to outputs, each under the name it has in `our_outputs`, in any dtype. A
        masked image model is given `probe_mask`. Where the library cannot be imported, names and shapes in the files
        are checked instead, with a `RunFailed` if they are wrong, and None is returned.
        """

    # Optional are `expected(source) -> dict[str, Tensor]`, float32 outputs beside those of `our_outputs`, and
    # `notes(source) -> list[str]`, what was added or left out and the like, one line for each.


class Difference(NamedTuple):
    """How far one output of the export is from ours."""

    output: str
    """Its name."""
    largest: float
    """Largest absolute difference."""
    tolerance: float
    """What is allowed."""

    @property
    def is_small(self) -> bool:
        """Whether it is allowed; what is no number is not."""
        return self.largest <= self.tolerance


class Exported(NamedTuple):
    """An export that was kept."""

    files: list[Path]
    """What was written, the most important first."""
    summary: str
    """How near it is to the model, for the user."""


def export_model(
    path: Path, out: Path, *, module: str, img_size: int | None = None, dtype: Dtype = "float32"
) -> Exported:
    """Write a model into a new or empty folder in the form of a target.

    Args:
        path: A model of ours, or a run.
        out: The folder.
        module: Of the target, in this room.
        img_size: Side of the images it is to take, in pixels, if others than in training.
        dtype: Of the weights.
    """
    check_new_folder("OUT", out, inputs=[path])
    source = read_source(path, img_size=img_size)
    target = cast(Target, importlib.import_module(f"beit.finetune.weights.export.{module}"))
    options = ExportOptions(name=Path(os.path.abspath(out)).name, dtype=dtype)
    with atomic_folder(out) as folder:
        names = [file.relative_to(folder) for file in target.write(source, folder, options)]
        summary = _prove(target, folder, source, options)
    return Exported([out / name for name in names], summary)


def import_library(name: str, *attributes: str) -> ModuleType | None:
    """Return a library; None where it is not installed, or cannot be imported, and then the reason is said.

    Args:
        name: Of the library.
        attributes: Of it that are needed; some libraries import their modules, and what these need, only then.
    """
    try:
        library = importlib.import_module(name)
        for attribute in attributes:
            getattr(library, attribute)
    except Exception as error:  # a part that was built for another version of its neighbour fails in ways of its own
        if not (isinstance(error, ModuleNotFoundError) and error.name == name):
            logger.warning("%s cannot be imported: %s", name, " ".join(str(error).split())[:_REASON])
        return None
    return library


def _prove(target: Target, folder: Path, source: ExportSource, options: ExportOptions) -> str:
    """Compare what was written with the model, and return the table of it."""
    said: list[str] = _of(target, "notes", source, [])
    if source.num_left_out:
        said = [*said, f"left out, since only pre-training runs them: {source.num_left_out} tensors of cls_pt_layers"]
    run, notes = target.reload(folder, source), [folded(note) for note in said]
    if run is None:
        missing = (
            f"{target.LIBRARY} cannot be imported: names and shapes were checked, what the export computes was not"
        )
        return "\n".join([*notes, folded(missing)])
    images = probe_images(source)
    beside: dict[str, Tensor] = _of(target, "expected", source, {})
    with torch.no_grad():
        theirs, ours = run(images), our_outputs(source, images)
    found = compare({name: theirs.pop(name) for name in beside}, beside, TOLERANCES["float32"])
    found = [*compare(theirs, ours, TOLERANCES[options.dtype]), *found]
    wrong = [one for one in found if not one.is_small]
    if wrong:
        by = "; ".join(f"{one.output} by {one.largest:.1e} (at most {one.tolerance:.1e})" for one in wrong)
        raise RunFailed(f"{target.LIBRARY} computes something else from the export: {by}; nothing was written")
    rows = [(name, f"{largest:.1e}", f"{tolerance:.1e}") for name, largest, tolerance in found]
    table = aligned([("output", "largest difference", "tolerance"), *rows], align="<>")
    head = f"{target.LIBRARY} and beit on the same {len(images)} images, {options.dtype}:"
    return "\n".join([*notes, head, table])


def _of(target: Target, name: str, source: ExportSource, otherwise: Value) -> Value:
    """Call what only some targets offer."""
    offered: Callable[[ExportSource], Value] | None = getattr(target, name, None)
    return otherwise if offered is None else offered(source)


def compare(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], tolerance: float) -> list[Difference]:
    """Compare outputs by name; ours may be more.

    Args:
        theirs: What is compared.
        ours: Of the same images.
        tolerance: Share of the largest value of an output; of 1 where that is smaller.
    """
    assert theirs.keys() <= ours.keys(), (sorted(theirs), sorted(ours))
    found = []
    for name, output in theirs.items():
        wanted = ours[name].float()
        assert output.shape == wanted.shape, (name, tuple(output.shape), tuple(wanted.shape))
        # max() of a tensor with a NaN is NaN, which no tolerance allows.
        largest = float((output.float() - wanted).abs().max())
        found.append(Difference(name, largest, tolerance * max(1.0, float(wanted.abs().max()))))
    return found

"""How many files of the product one must open to follow an image into a token tar, and a batch into a training step.

    python benchmarks/walks.py [--list] [--json]
    python benchmarks/walks.py --checkout ../old-commit      # another checkout, by its own .venv

Each walk is a command on a few generated images, in one process on the CPU: ranks, worker processes and launchers are
left out (`workers=1`, `reader.num_workers=0`), and so are what importing a module executes and generated code (the
constructors of dataclasses). Every Python function that is called is noted, in every thread, until the walk's end:

- tokenize-folder, tokenize-tars: the first token tar has its final name; images packed from a folder, or left in tars;
- pretrain: the optimizer's first step is done;
- resume: the same in a run that goes on from a checkpoint.

Counted are the files that are entered from the first line of the command's body on, settings, checks and preparations
included, and of these the way of the data: what is on the stack when the first image is opened (with the tokenizer
loaded, or the optimizer built), and what is entered from then on. Entries are functions that one is led into from
another file, each once.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
from PIL import Image

WALKS = ("tokenize-folder", "tokenize-tars", "pretrain", "resume")
NOT_PRODUCT = ("tests", "benchmarks", ".venv")
TOKENIZE = "--tokenizer mini --views 2 --img-size 32 --patch-size 8 --set workers=1 --set threads=1".split()
PRETRAIN = (
    "--set model.size=tiny --set model.depth=1 --set train.steps=4 --set train.global_batch_size=4 "
    "--set checkpoint.interval_steps=2 --set reader.num_workers=0 --set held_out.pictures=0"
).split()
STEPS_OF_OPTIMIZERS = ("/torch/optim/", "/deepspeed/ops/")


class Walk:
    """Notes the functions of a checkout that run between the start of a command and an end.

    Args:
        root: The checkout.
        tokens: Folder whose first tar ends the walk; None: an optimizer's first step does.
    """

    def __init__(self, root: Path, tokens: Path | None) -> None:
        self.root, self.tokens = f"{root}{os.sep}", tokens
        self.files: dict[str, str] = {}
        """From file, relative to the root, to the function it was first entered by, in order."""
        self.way: dict[str, str] = {}
        """The same from the first image on."""
        self.entries: set[tuple[str, str]] = set()
        """File and function of everything that was called from another file."""
        self._names: dict[CodeType, str | None] = {}
        self._is_prepared = self._is_over = False

    def trace(self, words: list[str]) -> None:
        """Run a command line of `beit` and note its walk."""
        from beit.cli import beit

        sys.addaudithook(self._see_open)
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        try:
            beit.main(words, standalone_mode=False)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
        assert self._is_over and self.way, "the command ended before the walk did"

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if self._is_over:
            return
        code = frame.f_code
        name = self._product_name(code)
        if name is None:
            if event == "return":
                is_built = "/torch/optim/" in code.co_filename and code.co_name == "__init__"
                is_loaded = "/torch/nn/modules/" in code.co_filename and code.co_name == "load_state_dict"
                self._is_prepared |= is_built if self.tokens is None else is_loaded
                self._is_over = self.tokens is None and _is_optimizer_step(code)
            return
        if event == "call":
            self._note(name, frame)
        if self.tokens is not None and self.tokens.is_dir():
            self._is_over = any(entry.endswith(".tar") for entry in os.listdir(self.tokens))

    def _see_open(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Begin the way of the data when the first image is opened."""
        if event == "open" and self._is_prepared and not self.way and not self._is_over:
            path = str(arguments[0])
            is_data = path.endswith((".jpg", ".tar")) or ".tar." in path  # also a tar that has no final name yet
            if is_data and not path.startswith(self.root):
                stack = [(self._product_name(frame.f_code), frame.f_code.co_qualname) for frame in _stack()]
                self.way = {name: function for name, function in stack if name in self.files}

    def _note(self, name: str, frame: FrameType) -> None:
        function = frame.f_code.co_qualname
        if not self.files and not (name.endswith("commands.py") and function.endswith("_command")):
            return  # still in the command line
        caller = frame.f_back
        is_entry = caller is None or self._product_name(caller.f_code) != name
        if not is_entry or _is_importing(frame):
            return
        self.entries.add((name, function))
        self.files.setdefault(name, function)
        if self.way:
            self.way.setdefault(name, function)

    def _product_name(self, code: CodeType) -> str | None:
        """Return the file of a function of the product, None for everything else."""
        if code not in self._names:
            is_function = bool(code.co_flags & inspect.CO_NEWLOCALS and code.co_flags & inspect.CO_OPTIMIZED)
            inside = code.co_filename.removeprefix(self.root)
            is_product = inside != code.co_filename and Path(inside).parts[0] not in NOT_PRODUCT
            self._names[code] = Path(inside).as_posix() if is_function and is_product else None
        return self._names[code]


def _stack() -> list[FrameType]:
    """Return the callers of the calling function, outermost first."""
    frames, frame = [], sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        frames.append(frame)
    return frames[::-1]


def _is_optimizer_step(code: CodeType) -> bool:
    return code.co_name == "step" and any(part in code.co_filename for part in STEPS_OF_OPTIMIZERS)


def _is_importing(frame: FrameType) -> bool:
    """Whether the call is part of executing a module's top level."""
    outer: FrameType | None = frame
    while outer is not None:
        if outer.f_code.co_name == "<module>" and outer.f_back and "importlib" in outer.f_back.f_code.co_filename:
            return True
        outer = outer.f_back
    return False


def write_images(folder: Path, count: int) -> None:
    """Write noise."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.jpg")


def trace(name: str) -> dict[str, Any]:
    """Trace one walk in the working directory, with the product that this interpreter imports."""
    import beit as package

    root = Path(str(package.__file__)).resolve().parent
    command = name.partition("-")[0]
    store = "store" if command == "tokenize" else "made"
    if name == "tokenize-tars":
        with tarfile.open("images.tar", "w") as tar:
            for path in sorted(Path("images").iterdir()):
                tar.add(path, path.name)
    if command != "tokenize":
        subprocess.run([sys.executable, "-m", "beit.cli", "tokenize", "images", store, *TOKENIZE], check=True)
    words = ["pretrain", store, "run", *PRETRAIN]
    if name == "resume":
        subprocess.run([sys.executable, "-m", "beit.cli", *words], check=True)
        _go_back("run", 2)
    if command == "tokenize":
        words = ["tokenize", "images.tar" if name.endswith("tars") else "images", store, *TOKENIZE]
    walk = Walk(root, Path(store, "tokens") if command == "tokenize" else None)
    walk.trace(words)
    return {
        "walk": name,
        "num_files": len(walk.files),
        "num_entries": len(walk.entries),
        "num_way_files": len(walk.way),
        "files": walk.files,
        "way": walk.way,
    }


def _go_back(run: str, step: int) -> None:
    """Take a run's checkpoints after `step` away, so that it has something left to do."""
    for folder in Path(run, "checkpoints").glob("step_*"):
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)


def main() -> None:
    """Trace all walks, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, metavar="DIR", help="Another checkout, with a .venv that has it.")
    parser.add_argument("--walk", choices=WALKS, action="append", help="Only this one; may be repeated.")
    parser.add_argument("--list", action="store_true", help="Also print the files, in the order they are entered.")
    parser.add_argument("--json", action="store_true", help="Print everything as JSON.")
    parser.add_argument("--trace", choices=WALKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trace:
        Path("result.json").write_text(json.dumps(trace(arguments.trace)))
        return
    python = arguments.checkout.resolve() / ".venv/bin/python" if arguments.checkout else Path(sys.executable)
    results = [_in_a_process(name, python) for name in arguments.walk or WALKS]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for result in results:
        print(
            f"{result['walk']}: {result['num_way_files']} files from the first image on, {result['num_files']} files "
            f"and {result['num_entries']} entries from the command on"
        )
        if arguments.list:
            print("".join(_listed(result)))


def _listed(result: dict[str, Any]) -> Iterator[str]:
    """Yield one line per file: those before the first image, then the way of the data."""
    before = {file: function for file, function in result["files"].items() if file not in result["way"]}
    for title, files in (("only before the first image", before), ("the way of the data", result["way"])):
        yield f"  {title}\n"
        yield from (f"    {file}  {function}\n" for file, function in files.items())


def _in_a_process(name: str, python: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "images"), 12)
        environment = {**os.environ, "BEIT_CACHE": str(Path(folder, "cache")), "OMP_NUM_THREADS": "1"}
        command = [str(python), str(Path(__file__).resolve()), "--trace", name]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr)
        found: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    return found


if __name__ == "__main__":
    main()

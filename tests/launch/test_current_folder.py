"""Files of the current folder that have the names of modules: no process imports one, whoever starts it and how.

The canaries are harmless: they only note in a file that they were imported, and by what.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from beit.tests.stand_in_pdsh import install
from beit.tests.support import write_images
from beit.tests.tiny_store import write_folder

pytestmark = [pytest.mark.launch, pytest.mark.timeout(600)]

CANARY = """
import os, sys
with open(os.environ["CANARY_NOTES"], "a") as notes:
    notes.write(__name__ + " in " + " ".join(sys.orig_argv) + "\\n")
raise RuntimeError("a canary was imported")
"""
NAMES = (
    *("copy", "random", "signal", "threading", "string", "secrets", "tempfile", "click", "json", "queue", "weakref"),
    *("numpy", "torch", "PIL", "pyarrow", "webdataset", "psutil", "deepspeed", "safetensors", "tqdm", "jinja2"),
)
SMALL = ("--tokenizer", "mini", "--views", "1", "--img-size", "32", "--patch-size", "4")
BRIEF = ("train.steps=2", "train.global_batch_size=8", "reader.num_workers=2")
BEIT = (str(Path(sys.executable).with_name("beit")),)
AS_MODULE = (sys.executable, "-m", "beit.cli")
TORCHRUN = (str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node=2", "-m", "beit.cli")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, labelled ones, a store, and canaries; half of them are packages."""
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder / "photos", 24)
    for name in ("red", "blue"):
        write_images(folder / "labelled" / name, 8)
    call(folder, *BEIT, "tokenize", "photos", "store", *SMALL)
    for number, name in enumerate(NAMES):
        file = folder / f"{name}.py" if number % 2 else folder / name / "__init__.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(CANARY)
    (folder / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
    return folder


def call(folder: Path, *words: str, **variables: str) -> None:
    notes = folder / "notes.txt"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CANARY_NOTES": str(notes)} | variables
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert not notes.exists(), notes.read_text()
    assert done.returncode == 0, done.stderr


def brief() -> list[str]:
    return ["--recipe", "demo", *(word for setting in BRIEF for word in ("--set", setting))]


@pytest.mark.parametrize(
    ("door", "options"),
    [("script", ()), ("module", ()), ("ranks", ("--gpus", "2")), ("torchrun", ())],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pretraining(folder: Path, door: str, options: tuple[str, ...]) -> None:
    program = {"module": AS_MODULE, "torchrun": TORCHRUN}.get(door, BEIT)
    call(folder, *program, "pretrain", "store", f"run-{door}", *options, *brief())


def test_finetuning_and_what_follows(folder: Path) -> None:
    options = ["--encoder", "random", "--val", "labelled", *brief()]
    call(folder, *BEIT, "finetune", "classification", "labelled", "model-run", *options)
    call(folder, *BEIT, "evaluate", "model-run/model", "labelled", "--gpus", "2")
    call(folder, *BEIT, "predict", "model-run/model", "photos")


@pytest.mark.parametrize(("name", "options"), [("processes", ("--workers", "5")), ("ranks", ("--gpus", "2"))])
def test_tokenizing(folder: Path, name: str, options: tuple[str, ...]) -> None:
    call(folder, *BEIT, "tokenize", "photos", f"store-{name}", *SMALL, *options)


def test_several_machines(folder: Path) -> None:
    variables = {"PATH": install(folder / "bin"), "MASTER_ADDR": "127.0.0.1"}
    call(folder, *BEIT, "pretrain", "store", "run-machines", "--hostfile", "hosts", *brief(), **variables)

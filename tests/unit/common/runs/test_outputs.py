"""Outputs that a user names never replace what a command reads, a link, or what is no file."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.runs.outputs import JSON, PAGE, PICTURE, check_new_folder, check_output_folder, check_outputs
from beit.common.runs.run_dir import open_run
from beit.common.storage.files import output_file, write_output


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"kept")
    return folder


def test_a_pipe_and_a_device_are_written_into(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    check_outputs({"--out": pipe, "--html": pipe})
    write_output(pipe, b"all of it")
    reader.join(10)
    assert got == [b"all of it"] and pipe.is_fifo()
    write_output(Path("/dev/null"), b"nowhere")
    assert not os.path.isfile("/dev/null")


def test_standard_output_gets_what_was_asked_for_after_what_was_printed(tmp_path):
    code = "from pathlib import Path; from beit.common.storage.files import write_output as w\n"
    code += "print('first', flush=True); w(Path('/dev/stdout'), b'second\\n'); print('third')"
    for redirect in ("cat", f"cat > {tmp_path / 'file'}; cat {tmp_path / 'file'}"):
        command = f'"{sys.executable}" -c "$CODE" | {redirect}'
        run = subprocess.run(["bash", "-c", command], env={**os.environ, "CODE": code}, capture_output=True, check=True)
        assert run.stdout == b"first\nsecond\nthird\n"
    command = f'"{sys.executable}" -c "$CODE" > {tmp_path / "direct"}'
    subprocess.run(["bash", "-c", command], env={**os.environ, "CODE": code}, check=True)
    assert (tmp_path / "direct").read_bytes() == b"first\nsecond\nthird\n"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm")
def test_a_file_in_shared_memory_is_replaced_like_any_other():
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        for data in (b"first, and longer", b"second"):
            write_output(folder / "out.json", data)
            assert (folder / "out.json").read_bytes() == data
        with pytest.raises(InputError, match="does not exist"):
            check_outputs({"--out": folder / "missing/out.json"})
        with pytest.raises(InputError, match="is what is read"):
            check_outputs({"--out": folder / "out.json"}, inputs=[folder / "out.json"])
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_is_followed(tmp_path, is_there):
    target, link = tmp_path / "elsewhere/real.csv", tmp_path / "link.csv"
    target.parent.mkdir()
    if is_there:
        target.write_bytes(b"old")
    link.symlink_to("elsewhere/real.csv")
    check_outputs({"--out": link})
    write_output(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "link.csv", "real.csv"]


def test_what_fails_leaves_the_old_file_and_writes_nothing_into_a_pipe(tmp_path):
    fill(tmp_path, "old.csv")
    with pytest.raises(RuntimeError), output_file(tmp_path / "old.csv") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "old.csv").read_bytes() == b"kept" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/x.csv", "does not exist; create it"),
        ("folder", "is a folder; name a file"),
        ("model/config.json", "lies among the weights"),
        ("model/new.json", "lies among the weights"),
        ("link/model.safetensors", "lies among the weights"),
        ("run/config.toml", "would replace a file of the run"),
        ("run/metrics.jsonl", "would replace a file of the run"),
        ("run/checkpoints/step_1/COMMIT.json", "lies among the weights"),
        ("run/checkpoints/latest", "would replace a file of the run"),
        ("run/knn.json", "would replace a file of the run"),
        ("run/model/x.json", "would replace a file of the run"),
        ("store/index.parquet", "lies in the token store"),
        ("store/tokens/a.tar", "lies in the token store"),
        ("store/page.html", "lies in the token store"),
        ("list.csv", "is what is read"),
        ("hard.csv", "is what is read"),
        ("photos/a.jpg", "would become part of"),
        ("photos/sub/new.png", "would become part of"),
        ("b-1.tar", "is what is read"),
        ("c-1.tar", "is what is read"),
    ],
)
def test_what_is_read_is_refused(tmp_path, name, message):
    fill(tmp_path, "folder/x", "model/config.json", "model/model.safetensors", "photos/a.jpg", "photos/sub/b")
    fill(tmp_path, "run/config.toml", "run/environment.json", "run/checkpoints/step_1/COMMIT.json", "run/model/y")
    fill(tmp_path, "store/store.json", "store/tokens/a.tar", "list.csv", "b-1.tar", "c-1.tar")
    (tmp_path / "link").symlink_to("model")
    os.link(tmp_path / "list.csv", tmp_path / "hard.csv")
    inputs = ["list.csv", "photos", "run", "b-{0..3}.tar", "c-*.tar"]
    with pytest.raises(InputError, match=f"--out .*{message}"):
        check_outputs({"--out": tmp_path / name}, inputs=[str(tmp_path / entry) for entry in inputs])


def test_new_files_beside_and_in_what_is_read_are_fine(tmp_path):
    fill(tmp_path, "run/config.toml", "run/environment.json", "photos/a.jpg", "run/evaluation.json", "list.csv")
    names = ["run/evaluation.json", "run/learning.png", "photos/labels.csv", "other.csv"]
    for name in names:
        check_outputs({"--out": tmp_path / name}, inputs=[tmp_path / "run", tmp_path / "photos", tmp_path / "list.csv"])
    check_outputs({"--out": None})
    check_outputs({"--out": tmp_path / "a/b/c.png"}, makes_folder=True)
    check_outputs({"--out": tmp_path / "x"}, inputs=["s3://bucket/x", "[not a pattern"])


def test_two_outputs_are_two_files(tmp_path):
    with pytest.raises(InputError, match="--out and --html are the same file"):
        check_outputs({"--out": tmp_path / "x", "--html": tmp_path / "." / "x"})


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("photos/sub", "would become part of"),
        ("photos/a.jpg", "is a file; name a folder"),
        ("photos/a.jpg/b/c", "in which no folder can be"),
        ("model", "lies among the weights"),
    ],
)
def test_a_folder_that_cannot_be_or_would_mix_with_what_is_read_is_refused(tmp_path, out, message):
    fill(tmp_path, "photos/a.jpg", "model/config.json", "model/model.safetensors")
    with pytest.raises(InputError, match=message):
        check_output_folder("--out", tmp_path / out, inputs=[tmp_path / "photos"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos"]


def test_a_folder_elsewhere_need_not_exist(tmp_path):
    fill(tmp_path, "photos/a.jpg")
    for out in ("new", "new/deep/er", "photos-masks", "."):
        check_output_folder("--out", tmp_path / out, inputs=[tmp_path / "photos"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("address", ["s3://bucket/out", "https://host/out", "gs://bucket/a/out", "file:///tmp/out"])
def test_an_address_is_no_folder_and_no_file_of_this_machine(address: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    for check in (
        lambda: check_outputs({"--out": Path(address)}, makes_folder=True),
        lambda: check_output_folder("OUT", Path(address)),
        lambda: check_new_folder("OUT", Path(address)),
        lambda: open_run(Path(address), None, world=world, resume="auto"),
    ):
        with pytest.raises(InputError, match=r"is an address, and this is written on this machine only"):
            check()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nothing_may_be_put_in_is_called_by_its_own_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match=rf"^OUT {tmp_path}/out: the folder {tmp_path} may not be written to"):
        check_new_folder("OUT", tmp_path / "out")


def test_what_is_put_in_its_place_whole_needs_one_that_is_free(tmp_path: Path, monkeypatch) -> None:
    check_new_folder("OUT", tmp_path / "a/b")
    (tmp_path / "out").mkdir()
    check_new_folder("OUT", tmp_path / "out")
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "out")
    with pytest.raises(InputError, match=r"OUT .*out is where a disk is mounted; name a new folder in it"):
        check_new_folder("OUT", tmp_path / "out")
    (tmp_path / "out/letter").touch()
    with pytest.raises(InputError, match=r"OUT .*out is not an empty folder"):
        check_new_folder("OUT", tmp_path / "out")
    with pytest.raises(InputError, match=r"OUT .*letter is a file"):
        check_new_folder("OUT", tmp_path / "out/letter")


@pytest.mark.parametrize(
    ("option", "name", "endings", "words"),
    [
        ("--out", "n.txt", PICTURE, "must end in .png: it is a picture"),
        ("--out", "n", PICTURE, "must end in .png"),
        ("--out", "n.png", PAGE, "must end in .html: it is a page"),
        ("--out", "n.png", JSON, "must end in .json: it is JSON"),
        ("--html", "n.json", None, "must end in .html"),
        ("--json", "n.html", None, "must end in .json"),
        ("--out", "n.png", (".csv", ".md"), "must end in .csv, .md, which says the format"),
    ],
)
def test_a_file_is_called_what_it_is(tmp_path, option, name, endings, words):
    with pytest.raises(InputError, match=words):
        check_outputs({option: tmp_path / name}, endings=endings)


def test_endings_may_be_in_capitals_and_a_device_has_none(tmp_path):
    check_outputs({"--out": tmp_path / "N.PNG"}, endings=PICTURE)
    check_outputs({"--out": tmp_path / "n.htm"}, endings=PAGE)
    check_outputs({"--out": Path("/dev/stdout")}, endings=JSON)
    check_outputs({"--out": tmp_path / "any"})
    with pytest.raises(InputError, match="which says the format"):
        check_outputs({"--out": Path("/dev/stdout")}, endings=(".csv", ".md"))

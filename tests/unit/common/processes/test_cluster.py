"""Hostfiles, forwarded variables and the command that reaches other machines; running it is tested in tests/launch."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from beit.common.errors import InputError
from beit.common.processes import cluster
from beit.common.processes.cluster import forwarded_variables, read_hostfile
from beit.common.processes.launch import launch_ranks
from beit.common.processes.one_machine import Cluster


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_hostfile_is_read_in_its_order(tmp_path: Path) -> None:
    file = write(tmp_path / "hosts", "# mine\nworker-2 slots=4\n\nme@worker-1 slots=2  # small\n")
    assert list(read_hostfile(file).items()) == [("worker-2", 4), ("me@worker-1", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=1\nb 2\n", r"line 2 \('b 2'\) must be NAME slots=N"),
        ("a slots=1\na slots=2\n", "line 2.*each name once"),
        ("a slots=0\n", "line 1"),
        ("# nothing\n", "lists no machine"),
    ],
)
def test_wrong_hostfile_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_hostfile(write(tmp_path / "hosts", text))


def test_missing_hostfile_or_pdsh_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="does not exist"):
        launch_ranks(hostfile=str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs pdsh"):
        launch_ranks(hostfile=str(write(tmp_path / "hosts", "a slots=1\n")))


def test_what_does_not_fit_the_machines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "pdsh", "#!/bin/sh\n").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    hosts = write(tmp_path / "hosts", "nowhere.invalid slots=2\n")
    with pytest.raises(InputError, match="--gpus 3 is more than the 2 slots of nowhere.invalid"):
        launch_ranks(hostfile=str(hosts), gpus=3)
    with pytest.raises(InputError, match="address of nowhere.invalid.*set MASTER_ADDR"):
        launch_ranks(hostfile=str(hosts))


def test_variables_reach_other_machines_by_name_and_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    write(tmp_path / ".deepspeed_env", "MY_LICENCE=a=b\nOMP_NUM_THREADS=3\n# no variable\n")
    variables = {
        "BEIT_CACHE": "/cache",
        "AWS_SECRET_ACCESS_KEY": "s$'\"x",
        "HF_TOKEN": "t",
        "OMP_NUM_THREADS": "8",
        "LD_LIBRARY_PATH": "/lib",
        "BEIT_RANK_REPORTS": "/tmp/x",
        "BEIT_LAUNCHER_PID": "1",
        "BEIT_LINES": "a\nb",
    }
    assert forwarded_variables(variables) == {
        "BEIT_CACHE": "/cache",
        "AWS_SECRET_ACCESS_KEY": "s$'\"x",
        "HF_TOKEN": "t",
        "OMP_NUM_THREADS": "3",
        "MY_LICENCE": "a=b",
    }


def test_the_remote_shell_gets_every_word_as_it_is() -> None:
    words = ["--set", "a.b='x y'", '$HOME "q" 100%h', "ü"]
    order = {"run": "r", "cluster": {}, "module": "m", "arguments": words}
    command = cluster._command(order, {"A": "1 $x%n"})
    assert command.endswith(" %h")
    plain = command.removesuffix(" %h").replace("%%", "%")
    parts = shlex.split(plain)
    assert parts[:2] == ["export", "A=1 $x%n;"] or parts[:2] == ["export", "A=1 $x%n"]
    assert cluster.json.loads(parts[-1])["arguments"] == words


def test_ranks_are_numbered_machine_by_machine() -> None:
    machines = Cluster(devices={"a": [0, 1], "b": [3], "c": [0, 1, 2]}, address="a", port=1)
    assert [machines.ranks_of(name) for name in "abc"] == [range(0, 2), range(2, 3), range(3, 6)]

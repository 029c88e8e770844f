"""Two CPU ranks through DeepSpeed's launcher: exact resume, exit codes, signals to anybody, no orphans."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from beit.common.runs.commits import committed_steps
from beit.common.runs.metrics import read_metrics
from beit.tests.stand_in_pdsh import install

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

MODULE = "beit.tests.toy_training"
LONG = ("train.steps=400", "step_seconds=0.2", "checkpoint.interval_steps=1000")


def start(run: Path, *overrides: str, fault: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", MODULE, str(run), "gpus=2", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BEIT_FAULT": fault}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str], *, timeout: float = 300) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        raise
    return process.returncode, output


def wait_for(condition: Callable[[], object], *, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def wait_for_step(run: Path, step: int) -> None:
    wait_for(lambda: any(record["step"] >= step for record in read_metrics(run / "metrics.jsonl")))


def processes_of(run: Path, part: str = "") -> list[psutil.Process]:
    """All live processes whose command line names the run and contains `part`."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if str(run) in words and any(part in word for word in words) and process.pid != os.getpid():
            found.append(process)
    return found


def ranks_of(run: Path) -> list[psutil.Process]:
    return [process for process in processes_of(run) if process.cmdline()[1:4] == ["-u", "-m", MODULE]]


def last_checkpoint(run: Path) -> int:
    return int((run / "checkpoints/latest").read_text().removeprefix("step_"))


def assert_same_end(folder: Path, *more: str) -> None:
    """The last checkpoints of the runs `whole` and `cut` are the same bytes."""
    for name in ("model", "optimizer", "rng", *more):
        files = [folder / run / f"checkpoints/step_8/{name}.safetensors" for run in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_ranks_resume_bit_for_bit(tmp_path: Path, zero_stage: int) -> None:
    settings = (f"deepspeed.zero_stage={zero_stage}", "train.ema_decay=0.9", "train.eval_interval_steps=2")
    settings = (*settings, "train.early_stop_evals=9", "keep_best=true")
    assert finish(start(tmp_path / "whole", *settings))[0] == 0
    code, output = finish(start(tmp_path / "cut", *settings, "stop_at=4", "stop_rank=1"))
    assert code == 75, output
    assert output.count("stopped at step 5 of 8") == 1
    code, output = finish(start(tmp_path / "cut", *settings))
    assert code == 0, output
    assert_same_end(tmp_path, "best")


def test_bad_input_is_one_line_and_code_2(tmp_path: Path) -> None:
    code, output = finish(start(tmp_path / "run", "input_error='store is missing'"))
    assert code == 2
    where, message = output.strip().splitlines()
    assert where.startswith("2 ranks on the CPU of this machine (")
    assert message == "beit: store is missing"


def test_the_command_itself_listens_where_its_ranks_meet(tmp_path: Path) -> None:
    """A port that is only found free for rank 0 could be taken by another program before it listens."""
    code, output = finish(start(tmp_path / "run", "show_variables=['TORCHELASTIC_USE_AGENT_STORE']", "train.steps=3"))
    assert code == 0, output
    assert "TORCHELASTIC_USE_AGENT_STORE='True'" in output


def test_port_of_another_launcher_that_is_taken_is_one_line_and_code_2(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        command = [sys.executable, "-m", MODULE, str(tmp_path / "run")]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert f"beit: port {port} of localhost, where the ranks are to meet, is taken by another program" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.fault
@pytest.mark.parametrize("target", ["command", "launch.py", "one rank", "group"])
def test_stop_signal_saves_and_exits_75(tmp_path: Path, target: str) -> None:
    process = start(tmp_path, *LONG)
    wait_for_step(tmp_path, 2)
    started = time.monotonic()
    if target == "command":
        process.terminate()
    elif target == "launch.py":
        processes_of(tmp_path, "deepspeed.launcher.launch")[0].terminate()
    elif target == "one rank":
        ranks_of(tmp_path)[1].terminate()
    else:
        # As SLURM does before the end of a job's time: to every process of it, the launcher included.
        os.killpg(os.getpgid(ranks_of(tmp_path)[0].pid), signal.SIGUSR1)
    code, output = finish(process)
    assert code == 75, output
    assert time.monotonic() - started < 120  # 25 s is the promise, on a machine that does nothing else
    assert last_checkpoint(tmp_path) >= 2
    assert not processes_of(tmp_path)


@pytest.mark.fault
def test_a_rank_that_somebody_has_stopped_hears_the_stop_signal_too(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG)
    wait_for_step(tmp_path, 2)
    ranks_of(tmp_path)[1].suspend()
    time.sleep(1)
    process.terminate()
    code, output = finish(process)
    assert code == 75, output
    assert last_checkpoint(tmp_path) >= 2
    assert not processes_of(tmp_path)


@pytest.mark.fault
def test_ctrl_c_during_start_up_is_resumable(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG)
    wait_for(lambda: ranks_of(tmp_path))
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 75, output
    assert not processes_of(tmp_path)


@pytest.mark.fault
@pytest.mark.parametrize("target", ["launch.py", "command"])
def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path, target: str) -> None:
    process = start(tmp_path, *LONG)
    wait_for_step(tmp_path, 2)
    if target == "command":
        process.kill()
    else:
        processes_of(tmp_path, "deepspeed.launcher.launch")[0].kill()
    code, output = finish(process)
    assert code != 0, output
    wait_for(lambda: not processes_of(tmp_path), seconds=90)
    assert 2 <= last_checkpoint(tmp_path) < 400  # asked to stop, neither cut off nor left to finish


@pytest.mark.fault
def test_kills_cost_the_steps_since_the_last_commit_only(tmp_path: Path) -> None:
    """Rank 0 dies before and after the commit of a checkpoint, rank 1 in a step; then nobody does."""
    stage = "deepspeed.zero_stage=1"
    assert finish(start(tmp_path / "whole", stage))[0] == 0
    for fault, saved in (("commit:1", None), ("committed:1", 3)):
        code, output = finish(start(tmp_path / "cut", stage, fault=fault))
        assert code == 1, output
        assert "beit: rank 0 ended without a word" in output
        assert not processes_of(tmp_path)
        assert max(committed_steps(tmp_path / "cut/checkpoints"), default=None) == saved
    code, output = finish(start(tmp_path / "cut", stage, "kill_at=7"))
    assert code == 1, output
    assert "continuing at step 3" in output
    assert "beit: last lines of rank 1:\n  a last word\n" in output
    assert output.rstrip().rpartition("\n")[2].startswith("beit: rank 1 ended without a word (killed")
    code, output = finish(start(tmp_path / "cut", stage))
    assert code == 0, output
    assert "continuing at step 6" in output
    assert_same_end(tmp_path)


@pytest.mark.fault
@pytest.mark.parametrize("target", ["ranks", "everybody"])
def test_all_ranks_killed_at_once_cost_the_steps_since_the_last_commit(tmp_path: Path, target: str) -> None:
    slow = "step_seconds=0.5"
    assert finish(start(tmp_path / "whole", slow))[0] == 0
    process = start(tmp_path / "cut", slow)
    wait_for(lambda: committed_steps(tmp_path / "cut/checkpoints"))
    if target == "everybody":  # the machine went down: nobody is left to say a word
        process.kill()
    for victim in processes_of(tmp_path / "cut") if target == "everybody" else ranks_of(tmp_path / "cut"):
        victim.kill()
    code, output = finish(process)
    assert code == (1 if target == "ranks" else -signal.SIGKILL), output
    assert target == "everybody" or "ended without a word (killed" in output
    assert not processes_of(tmp_path / "cut")
    code, output = finish(start(tmp_path / "cut", slow))
    assert code == 0, output
    assert "continuing at step " in output
    assert_same_end(tmp_path)


@pytest.mark.fault
def test_stop_signal_during_a_save_stops_both_ranks_behind_it(tmp_path: Path) -> None:
    code, output = finish(start(tmp_path, "signal_in_save=3"))
    assert code == 75, output
    assert output.count("stopped at step ") == 1
    assert last_checkpoint(tmp_path) >= 3
    assert not processes_of(tmp_path)


@pytest.mark.fault
def test_hung_rank_ends_the_run(tmp_path: Path) -> None:
    code, output = finish(start(tmp_path, "hang_at=5", "train.collective_timeout_seconds=15"))
    assert code == 1, output
    assert not processes_of(tmp_path)


class TestTwoMachines:
    """Two machines behind a stand-in for pdsh, one rank on each."""

    @staticmethod
    def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
        hosts = folder / "hosts"
        hosts.write_text("node-a slots=1\nnode-b slots=1\n")
        variables = {
            "PATH": install(folder / "bin"),
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "AWS_SECRET_ACCESS_KEY": "s $HOME 'q\" 100%h",
        }
        shown = "show_variables=['AWS_SECRET_ACCESS_KEY','OMP_NUM_THREADS','PYTHONSAFEPATH']"
        command = [sys.executable, "-m", MODULE, str(folder / "run"), f"hostfile={hosts}", shown, *overrides]
        environment = os.environ | variables
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    @pytest.mark.fault
    def test_variables_signals_and_exit_codes_travel(self, tmp_path: Path) -> None:
        process = self.start(tmp_path, *LONG)
        wait_for_step(tmp_path / "run", 2)
        process.terminate()
        code, output = finish(process)
        assert code == 75, output
        for node in ("node-a", "node-b"):
            secret = "s $HOME 'q\" 100%h"
            assert f"AWS_SECRET_ACCESS_KEY={secret!r}" in [
                line.partition(": ")[2].removeprefix("[rank 1] ")
                for line in output.splitlines()
                if line.startswith(node)
            ]
        assert "OMP_NUM_THREADS='1'" in output and "stopped at step" in output
        assert not processes_of(tmp_path / "run")
        stopped_at = last_checkpoint(tmp_path / "run")
        assert stopped_at >= 2
        code, output = finish(self.start(tmp_path, *LONG, "train.steps=400", f"kill_at={stopped_at + 1}"))
        assert code == 1, output
        assert f"continuing at step {stopped_at}" in output
        assert "node-b: beit: rank 1 ended without a word (killed by SIGKILL" in output
        assert not processes_of(tmp_path / "run")

    @pytest.mark.fault
    def test_ranks_do_not_outlive_a_killed_command(self, tmp_path: Path) -> None:
        process = self.start(tmp_path, *LONG)
        wait_for_step(tmp_path / "run", 2)
        process.kill()
        process.communicate(timeout=60)
        wait_for(lambda: not processes_of(tmp_path / "run"), seconds=90)
        assert 2 <= last_checkpoint(tmp_path / "run") < 400

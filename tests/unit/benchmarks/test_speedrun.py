"""The table of the speed-run has a head for each cell; what is wrong is one line before anything is made."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import click
import pytest

from beit.benchmarks import speedrun
from beit.benchmarks.paired_runs import run_script
from beit.common.errors import InputError, RunFailed

ROOT = Path(__file__).parents[3]


def test_each_cell_stands_under_its_head(tmp_path):
    run = {"seed": 0, "steps": 7, "seconds": 10.0, "store_seconds": 3.0, "bits": 6.5, "probe": 0.5, "knn": 0.3}
    rows = {"first": [run], "second": [{**run, "seconds": 5.0, "probe": 0.6, "fine-tuned": 0.7}]}
    speedrun.report(rows, tmp_path / "race")
    lines = (tmp_path / "race.md").read_text().splitlines()
    head, rule, first, second = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert len(head) == len(rule) == len(first) == len(second)
    found = dict(zip(head, second, strict=True))
    assert (found["steps"], found["processor seconds"], found["of the first"], found["of the store"]) == (
        *("7", "5", "0.50", "3"),
    )
    assert (found["bits"], found["linear probe"], found["to the first"]) == ("6.50", "60.0", "+10.0")
    assert (found["k-NN"], found["fine-tuned"], found["seeds"]) == ("30.0", "70.0", "1")


def test_every_trial_differs_from_every_other():
    decisive = [(dict(trial.recipe), dict(trial.store)) for trial in speedrun.TRIALS.values()]
    assert all(one not in decisive[:number] for number, one in enumerate(decisive))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (["trials", "--names", "none"], "--names none: there is only"),
        (["trials", "--steps", "0"], "--steps 0 must be 2 or more"),
        (["trials", "--train", "nowhere"], "--train nowhere does not exist"),
        (["trials", "--seeds", "a"], "--seeds 'a' must be numbers"),
        (["trials", "--seeds", "1,01"], "--seeds 1,01 names a seed twice"),
        (["trials", "--out", "file"], "--out file is a file; name a folder"),
        (["race", "--other", "no/python"], "--other no/python cannot be run"),
        (["race", "--other", sys.executable, "--val", "nowhere"], "--val nowhere does not exist"),
        (
            ["race", "--other", sys.executable, "--shares", "third"],
            "--shares third: there is only a quarter, half, all",
        ),
        (["race", "--other", sys.executable, "--scale", "0"], "--scale 0 must be above 0"),
    ],
)
def test_wrong_words_are_refused_in_one_line_and_nothing_is_made(own, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speedrun, "claim", None)  # nobody gets as far as that
    (tmp_path / "images").mkdir()
    (tmp_path / "file").touch()
    words = [own[0], "--train", "images", "--val", "images", "--out", "out", *own[1:]]
    with pytest.raises(InputError, match=said):
        speedrun.main(words, standalone_mode=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_only_the_script_gets_ends_its_command_too(number, tmp_path, monkeypatch):
    """As `timeout` and SLURM send it; the command slept for ten minutes."""
    ready = tmp_path / "ready"
    sleep = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"

    @click.command()
    def main():
        with (tmp_path / "lock").open("w") as lock:
            speedrun.measured([sys.executable, "-c", sleep], lock=lock.fileno())

    def send():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(sys, "argv", ["script.py"])
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(SystemExit) as caught:
        run_script(main)
    sender.join()
    assert caught.value.code == 75


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 75, "stopped; start the same command again"),
        (OSError(28, "No space left on device", "out/race.md"), 1, "No space left on device: 'out/race.md'"),
        (InputError("wrong"), 2, "wrong"),
    ],
)
def test_scripts_end_with_one_line_and_the_codes_of_beit(error, code, said, monkeypatch, capsys):
    @click.command()
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert caught.value.code == code
    assert said in capsys.readouterr().err


def test_a_command_is_measured_with_all_that_it_starts(capfd):
    inner = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    with open("/dev/null") as lock:
        assert 0.2 <= speedrun.measured([sys.executable, "-c", outer], lock=lock.fileno()) < 20
        with pytest.raises(RunFailed, match="ended with exit code 3"):
            speedrun.measured([sys.executable, "-c", "raise SystemExit(3)"], lock=lock.fileno())


def test_trials_of_the_earlier_recipe_warm_up_for_a_tenth_of_their_steps_as_the_page_says(tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(
        speedrun.Bench, "run", lambda self, made, *words, **_: told.setdefault(made.name, words) and 1.0
    )
    monkeypatch.setattr(speedrun, "read_metrics", lambda file: [{"held_out_bits": 1.0}])
    monkeypatch.setattr(speedrun, "read_json", lambda file: {"top1": 0.5})
    bench = speedrun.Bench(train="a", val="b", out=tmp_path, shape=(), views=2, labels=9, lock=0)
    for name, trial in speedrun.TRIALS.items():
        told.clear()
        bench.measure(trial, seed=0, steps=1500, folder=tmp_path / name)
        warmups = [word for word in map(str, told["pretrain"]) if "warmup" in word]
        assert warmups == (["optimizer.warmup_steps=150"] if name.startswith("earlier") else []), name
    assert "with a warm-up of a tenth of the steps" in (ROOT / "docs/speedrun.md").read_text()

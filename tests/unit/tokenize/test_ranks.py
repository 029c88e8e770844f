import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import psutil
import pytest

from beit.common.errors import InputError
from beit.common.storage.place import place_of
from beit.tests.s3_server import serve_s3
from beit.tests.support import write_images, write_tokenizer
from beit.tests.tiny_store import tiny_config, tree_bytes
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.run import run_tokenize, tokenize_with_ranks

pytestmark = pytest.mark.launch


def config(tmp_path, **changes):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    return tiny_config(tokenizer=str(tokenizer), **changes)


def test_two_processes_write_what_one_writes(tmp_path):
    source, settings = write_images(tmp_path / "images", 20), config(tmp_path)
    run_tokenize(settings, str(source), tmp_path / "one")
    summary = tokenize_with_ranks(settings, str(source), tmp_path / "two", ranks=2)
    assert summary.is_complete and summary.num_images_done == 20 and len(summary.reports) == 2
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")


def test_bad_input_of_a_rank_is_bad_input_of_the_whole(tmp_path):
    settings = config(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        tokenize_with_ranks(settings, str(tmp_path / "nowhere"), tmp_path / "store", ranks=2)


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node=2", "-m", "beit.cli"],
    "deepspeed": ["deepspeed.launcher.runner", "--num_gpus=2", "--no_local_rank", "--module", "beit.cli"],
}


def command(tmp_path):
    settings = ("threads=1", "micro_batch_size=4", "shard_size=4", "bad_sample_budget=0.5", "workers=2")
    arguments = ["tokenize", tmp_path / "images", tmp_path / "store", "--tokenizer", tmp_path / "tokenizer"]
    arguments += ["--views", 3, "--img-size", 16, "--patch-size", 4]
    return [*map(str, arguments), *(part for setting in settings for part in ("--set", setting))]


def clean_store(tmp_path):
    run_tokenize(config(tmp_path), str(write_images(tmp_path / "images", 20)), tmp_path / "clean")
    return tree_bytes(tmp_path / "clean")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_start_ranks_that_share_one_store(tmp_path, launcher):
    expected = clean_store(tmp_path)
    process = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], *command(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("20 usable") == 1
    assert tree_bytes(tmp_path / "store") == expected


def objects(store):
    names = {file.path for file in [*store.walk(), *store.files()]}  # hidden ones, too
    return {name: (store / name).read() for name in names}


KILLED_RANK = """
import os
import sys
import time
from beit.common.storage.files import set_trap
from beit.common.storage.place import place_of
if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        set_trap("sample:2")
    else:  # the other begins a shard before this one can do it
        while not (place_of(sys.argv[3]) / ".lease.000001-files").exists():
            time.sleep(0.05)
    from beit.cli import main
    main()
"""


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_rank_of_torchrun_that_is_killed_costs_its_shard_only(tmp_path, place):
    """torchrun ends the other ranks then, which stop as on any signal; the same command completes the store."""
    expected, script = clean_store(tmp_path), tmp_path / "killed_rank.py"
    script.write_text(KILLED_RANK)
    with serve_s3({}) if place == "bucket" else nullcontext() as bucket:
        store = f"{bucket}/store" if bucket else str(tmp_path / "store")
        arguments = [store if argument.endswith("/store") else argument for argument in command(tmp_path)]
        for module, is_killed in (([script], True), (["-m", "beit.cli"], False)):
            process = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *map(str, module), *arguments],
                env=os.environ | {"OMP_NUM_THREADS": "1", "BEIT_CACHE": str(tmp_path / "cache")},
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert (process.returncode != 0) is is_killed, process.stderr
        written = tree_bytes(tmp_path / "store") if bucket is None else objects(place_of(store))
    assert "20 usable" in process.stdout
    assert written == expected
    assert not list(tmp_path.glob("cache/spool/*"))


def test_a_slurm_task_does_the_shards_of_a_lost_one(tmp_path):
    expected = clean_store(tmp_path)
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "node[1-2]"}
    tasks = []
    for rank, fault in ((1, {"BEIT_FAULT": "sample:2"}), (0, {})):
        tasks.append(
            subprocess.Popen(
                [sys.executable, "-m", "beit.cli", *command(tmp_path)],
                env=os.environ | slurm | {"SLURM_PROCID": str(rank), "OMP_NUM_THREADS": "1"} | fault,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        # The other begins only when this one is at a shard, which it could do otherwise.
        while tasks[0].poll() is None and not (tmp_path / "store/.lease.000001-files").exists():
            time.sleep(0.02)
    outputs = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [-signal.SIGKILL, 0]
    assert "20 usable" in outputs[1]
    assert tree_bytes(tmp_path / "store") == expected


SCRIPT = """
import sys
from pathlib import Path
from beit.common.errors import ResumableStop
from beit.tests.tiny_store import tiny_config
from beit.tokenize.run import tokenize_with_ranks
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = tiny_config(tokenizer=str(folder / "tokenizer"), views=200)
    try:
        tokenize_with_ranks(settings, str(folder / "images"), folder / "store", ranks=2)
    except ResumableStop:
        sys.exit(75)
    except ChildProcessError as error:
        print(error)
        sys.exit(9)
"""


def start(tmp_path, count):
    write_images(tmp_path / "images", count)
    write_tokenizer(tmp_path / "tokenizer")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "store/tokens").glob("*.tmp.*"))) < 2:  # both ranks are at work
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def ranks_of(process):
    """The process ids of both ranks; the first child is that of multiprocessing itself."""
    return [
        child.pid for child in psutil.Process(process.pid).children() if "resource_tracker" not in str(child.cmdline())
    ]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_signal_to_the_command_stops_all_ranks(tmp_path):
    process = start(tmp_path, 400)
    pids = ranks_of(process)
    assert len(pids) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize("lost", [0, 1])
def test_the_other_rank_does_the_shards_of_a_lost_one(tmp_path, lost):
    process = start(tmp_path, 60)
    os.kill(ranks_of(process)[lost], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 9
    assert f"rank {lost} of 2: ended without a result (exit code -9); the others did its shards" in output
    assert verify_store(tmp_path / "store").problems == []
    before = tree_bytes(tmp_path / "store")
    run_tokenize(config(tmp_path, views=200), str(tmp_path / "images"), tmp_path / "store")
    assert tree_bytes(tmp_path / "store") == before


def test_ranks_end_with_the_command(tmp_path):
    process = start(tmp_path, 400)
    pids = ranks_of(process)
    assert len(pids) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "Traceback" not in process.communicate(timeout=60)[0]

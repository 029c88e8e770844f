"""Images worked on in processes: the same store as with threads, and what happens when somebody dies."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import psutil
import pytest

from beit.common.errors import BadSample, ResumableStop, RunFailed
from beit.common.processes.signals import stop_on_signals
from beit.common.sources.types import SampleRef
from beit.common.views import AugmentConfig
from beit.tests.support import write_images, write_tokenizer
from beit.tests.tiny_store import encoded_image, tiny_config, tokenize, tree_bytes, write_folder
from beit.tokenize import parallel
from beit.tokenize.parallel import Processes, Workers, worker_processes
from beit.tokenize.shards.encode import ViewMaker

MAKER = ViewMaker(seed=3, num_views=2, token_img_size=16, augment=AugmentConfig())


def ref(number):
    return SampleRef(f"k{number}", 0, 1, None, f"images/{number}.jpg")


@pytest.mark.parametrize("changes", [{}, {"short_side": 32}, {"materialize": True}], ids=["images", "shrunk", "crops"])
def test_a_store_is_the_same_bytes_and_damaged_images_are_counted(tmp_path, changes):
    source = write_folder(tmp_path / "images", 9)
    (source / "damaged.jpg").write_bytes(encoded_image(1)[:200])
    summaries = [tokenize(source, tmp_path / choice, worker_processes=choice, **changes) for choice in ("off", "on")]
    assert tree_bytes(tmp_path / "on") == tree_bytes(tmp_path / "off")
    assert [len(summary.skipped) for summary in summaries] == [1, 1]


def test_threads_share_no_more_processes_than_there_are_cores_and_order_is_kept():
    images = [encoded_image(number) for number in range(20)]
    with Processes(MAKER.make, 2) as processes, Workers(5) as workers:
        made = list(workers.map(lambda number: processes.call(ref(number), images[number]), range(20)))
        family = multiprocessing.active_children()
        assert 1 <= len(family) <= 2
    for number, result in enumerate(made):
        expected = MAKER.make(ref(number), images[number])
        assert result.ref == expected.ref
        np.testing.assert_array_equal(result.views, expected.views)
        np.testing.assert_array_equal(result.token_views, expected.token_views)
    assert not any(process.is_alive() for process in family)


@pytest.mark.parametrize(
    ("choice", "num_workers", "expected"), [("auto", 4, False), ("auto", 5, True), ("on", 1, True), ("off", 64, False)]
)
def test_auto_takes_processes_where_threads_would_stand_in_each_others_way(choice, num_workers, expected):
    config = tiny_config(worker_processes=choice)
    with worker_processes(MAKER.make, config, num_workers) as processes:
        assert (processes is not None) == expected


def test_errors_come_back_as_what_they_are():
    with Processes(MAKER.make, 2) as processes:
        with pytest.raises(BadSample) as caught:
            processes.call(ref(1), encoded_image(1)[:200])
        assert caught.value.reason == "truncated"
        with pytest.raises(AttributeError) as failed:
            processes.call(ref(2), 7)
        assert "images/2.jpg" in failed.value.__notes__[0]
        assert processes.call(ref(3), encoded_image(3)).ref == ref(3)


def wait_and_return(ref, seconds):
    time.sleep(seconds)
    return ref.path


def test_a_killed_process_is_one_clear_line_and_the_others_end_with_it():
    started = time.monotonic()
    with pytest.raises(RunFailed) as caught, Processes(wait_and_return, 2) as processes, Workers(2) as workers:
        # Slow ones, so that a second process starts and is at work when the first is killed.
        results = workers.map(lambda number: processes.call(ref(number), 0.5 if number < 2 else 600), range(4))
        assert [next(results), next(results)] == ["images/0.jpg", "images/1.jpg"]
        family = multiprocessing.active_children()
        os.kill(family[0].pid, signal.SIGKILL)
        list(results)
    assert re.fullmatch(
        r"a worker process is gone \(killed, .*\) at images/2\.jpg or an image near it; finished .*", str(caught.value)
    )
    assert not any(process.is_alive() for process in family)
    assert time.monotonic() - started < 60


def stop_itself(ref, is_last):
    if is_last:
        os.kill(os.getpid(), signal.SIGSTOP)
    return ref.path


def test_a_stopped_process_ends_the_work_at_the_limit():
    with pytest.raises(RunFailed) as caught, Processes(stop_itself, 1) as processes, Workers(2) as workers:
        assert processes.call(ref(0), False) == "images/0.jpg"  # started, which may take long
        processes._timeout_seconds = 2.0
        list(workers.map(lambda number: processes.call(ref(number), number == 3), range(3, 4)))
    assert re.fullmatch(
        r"a worker process .* images/3\.jpg or an image near it did not answer for 2 s \(worker_timeout_seconds\); .*",
        str(caught.value),
    )
    assert not multiprocessing.active_children()


def test_a_stop_signal_is_heard_while_a_process_is_stopped(monkeypatch):
    monkeypatch.setattr(parallel, "_PATIENCE_SECONDS", 0.5)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with stop_on_signals() as stop, pytest.raises(ResumableStop, match=r"stopped \(SIGTERM\)"):
        with Processes(stop_itself, 2) as processes, Workers(2, stop) as workers:
            list(workers.map(lambda number: processes.call(ref(number), number == 3), range(4)))
    assert not multiprocessing.active_children()


def test_a_process_that_is_stopped_when_all_is_done_holds_nobody(monkeypatch):
    monkeypatch.setattr(parallel, "_END_SECONDS", 1.0)
    with Processes(stop_itself, 1) as processes:
        assert processes.call(ref(0), False) == "images/0.jpg"
        (process,) = multiprocessing.active_children()
        os.kill(process.pid, signal.SIGSTOP)
    assert not multiprocessing.active_children()


def command(source, store, tokenizer):
    words = ["tokenize", source, store, "--tokenizer", tokenizer, "--views", 20, "--img-size", 16, "--patch-size", 4]
    words += ["--workers", 2, "--set", "worker_processes=on", "--set", "threads=1", "--set", "shard_size=10"]
    return [sys.executable, "-m", "beit.cli", *map(str, words)]


@pytest.mark.launch
@pytest.mark.timeout(300)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=lambda signum: signum.name)
def test_no_process_outlives_the_command_and_a_rerun_completes(tmp_path, signum):
    source, store = write_images(tmp_path / "images", 200), tmp_path / "store"
    start = partial(
        subprocess.Popen,
        command(source, store, write_tokenizer(tmp_path / "tokenizer")),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    process = start()
    while not list(store.glob("tokens/*.manifest.json")):  # the test's time limit ends this if the command hangs
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    if signum == signal.SIGTERM:
        os.killpg(process.pid, signum)  # as a scheduler does: to the decoding processes, too
    else:
        process.kill()
    _, errors = process.communicate()
    assert process.returncode == (75 if signum == signal.SIGTERM else -signum), errors
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    process = start()
    _, errors = process.communicate()
    assert process.returncode == 0, errors

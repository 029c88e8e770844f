"""In a process of its own: what is looked at is what its end leaves."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import multiprocessing.queues as queues
import threading, time
from multiprocessing import resource_tracker
from torch.utils.data import IterableDataset

class Numbers(IterableDataset):
    def __iter__(self):
        for number in range(3):
            yield {"keys": [str(number)], "bad_samples": []}

def be_late():
    # The thread that fills a queue lets go of it last, and is slow to say which semaphores are gone.
    feed, tracker = queues.Queue._feed, resource_tracker._resource_tracker
    tell = tracker._send
    def slowly_feed(*arguments):
        feed(*arguments)
        time.sleep(0.3)
    def slowly_tell(*words):
        time.sleep(1.0 if threading.current_thread().name == "QueueFeederThread" else 0.0)
        tell(*words)
    queues.Queue._feed, tracker._send = staticmethod(slowly_feed), slowly_tell

if __name__ == "__main__":
    be_late()
    from beit.common.reading.bad_samples import BadSampleLog
    from beit.common.reading.config import ReaderConfig
    from beit.common.reading.loader import Loader

    loader = Loader(
        pipeline=Numbers(), num_batches=3, num_workers=1, board=None, bad_samples=BadSampleLog(3, 0.5),
        config=ReaderConfig(num_workers=1), pin_memory=False,
    )
    batches = iter(loader)
    print(next(batches)["keys"])
    batches.close()
    time.sleep(0.4)
"""


def test_a_process_that_ends_right_after_its_workers_leaves_no_semaphore(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command, environment = [sys.executable, str(script)], os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout, found.stderr) == (0, "['0']\n", "")

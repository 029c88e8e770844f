"""Waiting for ranks of this machine, one of which somebody has stopped; ranks that work are in test_ranks.py."""

import multiprocessing
import os
import signal
import time

import psutil
import pytest

from beit.common.processes.signals import StopFlag
from beit.tokenize import run
from beit.tokenize.run import Outcome, _raise_failures, _wait_for_ranks
from beit.tokenize.summary import TokenizeSummary

COMPLETE = Outcome("done", summary=TokenizeSummary(store="s", is_complete=True, views=1))
FAILED = Outcome("failed", "the disk is full")


def end_with(sender, outcome, seconds):
    if outcome is None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as if the kernel kept it from running
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(3600)
    time.sleep(seconds)
    sender.send(outcome)


@pytest.fixture
def started(monkeypatch):
    """Return a function that starts a rank per outcome; without one, it stops itself."""
    monkeypatch.setattr(run, "_GRACE_SECONDS", 1.0)
    monkeypatch.setattr(run, "_POLL_SECONDS", 0.1)
    context = multiprocessing.get_context("fork")

    def start(*outcomes, seconds=0.0):
        ranks = []
        for outcome in outcomes:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=end_with, args=(sender, outcome, seconds))
            process.start()
            sender.close()
            ranks.append((process, receiver))
        return ranks

    return start


def test_a_stopped_rank_is_ended_when_another_one_has_completed_the_store(started, caplog):
    outcomes = _wait_for_ranks(started(COMPLETE, None), StopFlag())
    assert outcomes == [COMPLETE, Outcome("done")]
    _raise_failures(outcomes)
    (line,) = caplog.messages
    assert line.startswith("rank 1 (pid ") and line.endswith("was ended; the others have completed the store")


def test_a_rank_that_failed_gives_no_reason_to_end_the_others(started):
    ranks = started(FAILED, COMPLETE, seconds=0.0)
    assert _wait_for_ranks(ranks, StopFlag()) == [FAILED, COMPLETE]
    begun = started(FAILED)[0], started(COMPLETE, seconds=2.0)[0]
    assert _wait_for_ranks([*begun], StopFlag()) == [FAILED, COMPLETE]


def test_a_rank_that_hears_nothing_is_ended_after_a_stop_signal(started):
    stop = StopFlag()
    stop.handle(signal.SIGTERM, None)
    (outcome,) = _wait_for_ranks(started(None), stop)
    assert outcome.kind == "stopped"
    assert outcome.message.startswith("tokenisation stopped (SIGTERM); rank 0 (pid ")


def test_a_stopped_rank_is_woken_to_hear_a_stop_signal():
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=stop_and_listen, args=(sender,))
    process.start()
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.05)
    stop = StopFlag()
    stop.handle(signal.SIGTERM, None)
    assert _wait_for_ranks([(process, receiver)], stop) == [Outcome("stopped", "saved")]


def stop_and_listen(sender):
    signal.signal(signal.SIGTERM, lambda *_: sender.send(Outcome("stopped", "saved")))
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.5)

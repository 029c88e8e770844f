"""Signals set a flag, and only a flag."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from beit.common.processes.signals import StopFlag, stop_on_signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_sets_the_flag(signum: signal.Signals) -> None:
    with stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signum)
        assert stop.is_set()
        assert stop.reason == signum.name


def test_nested_blocks_share_the_flag() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with stop_on_signals() as inner:
            assert inner is outer and inner.is_set()
    assert signal.getsignal(signal.SIGTERM) is before
    with stop_on_signals() as fresh:
        assert not fresh.is_set()


def test_second_ctrl_c_interrupts() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()


def test_lost_parent_or_launcher_is_a_request() -> None:
    assert StopFlag(parent=os.getppid() + 1).is_set()
    assert not StopFlag(parent=os.getppid(), launcher=os.getpid()).is_set()
    child = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(child, 0)
    assert StopFlag(launcher=child).is_set()


def test_other_threads_work_without_handlers() -> None:
    seen = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]

"""Signals set a flag, and only a flag."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from beit.common.errors import ResumableStop
from beit.common.processes.signals import StopFlag, resumable_without_others, stop_on_signals, under_way


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


def test_ctrl_c_is_answered_with_what_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals() as stop:
        assert stop.outlook() == "stopping as soon as what is under way allows; again to stop at once"
        for name in ("this step", "this step"):
            with under_way(name):
                said = stop.outlook()
                stop._seconds[name] = 20.0
                assert stop.outlook() == "stopping after this step (about 20 s); again to stop at once"
        assert said == "stopping after this step (about 1 s); again to stop at once"  # the first one took no time
        with stop.during("this evaluation"):
            stop._seconds["this evaluation"] = 600.0
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "stopping after this evaluation (about 10 min); again to stop at once\n"


@pytest.mark.parametrize("variables", [{"RANK": "1"}, {}])
def test_ctrl_c_is_answered_once(
    capfd: pytest.CaptureFixture[str], monkeypatch: Any, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM if not variables else signal.SIGINT)
    assert capfd.readouterr().err == ""


class CompilerGone(RuntimeError):
    """As torch raises it when its C compiler is killed."""

    __module__ = "torch._inductor.exc"


@pytest.mark.parametrize(
    ("error", "said"),
    [(CompilerGone("g++"), "while the model was compiled"), (RuntimeError("/gloo/transport/tcp"), "another rank left")],
)
def test_what_a_signal_ended_first_is_an_orderly_stop_only_where_one_came(error: Exception, said: str) -> None:
    asked, not_asked = StopFlag(), StopFlag()
    asked.reason = "SIGINT"
    with pytest.raises(ResumableStop, match=said), resumable_without_others(asked):
        raise error
    with pytest.raises(type(error)), resumable_without_others(not_asked):
        raise error
    with pytest.raises(ZeroDivisionError), resumable_without_others(asked):
        raise ZeroDivisionError

"""Limits on non-finite steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beit.common.training.judge import Diverged, NonFiniteGuard


def test_three_in_a_row_pass_and_the_fourth_stops(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path / "n.jsonl")
    for step in (10, 11, 12):
        guard.note(step, [["a"]])
    with pytest.raises(Diverged, match="step 13: more than 3 steps in a row"):
        guard.note(13, [["a"]])
    assert [json.loads(line)["step"] for line in (tmp_path / "n.jsonl").read_text().splitlines()] == [10, 11, 12, 13]


def test_eleventh_within_a_thousand_stops() -> None:
    guard = NonFiniteGuard(None)
    for step in range(0, 1000, 100):
        guard.note(step, [])
    with pytest.raises(Diverged, match="more than 10 steps in 1000"):
        guard.note(999, [])


def test_old_ones_are_forgiven_but_counted() -> None:
    guard = NonFiniteGuard(None)
    for step in range(0, 4000, 100):
        guard.note(step, [])
    assert guard.total == 40


def test_memory_survives_a_resume() -> None:
    guard = NonFiniteGuard(None)
    for step in (1, 2, 3):
        guard.note(step, [])
    resumed = NonFiniteGuard(None)
    resumed.restore(json.loads(json.dumps(guard.state())))
    assert resumed.total == 3
    with pytest.raises(Diverged):
        resumed.note(4, [])


def test_overflows_that_lower_the_loss_scale_are_counted_but_not_limited(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path / "n.jsonl")
    for step in range(20):
        guard.note(step, [["a"]], is_overflow=True)
    assert guard.total == 20
    assert not (tmp_path / "n.jsonl").exists()

"""A learning rate too high is seen in the training loss; noise, a slow start and an interruption are not."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from beit.pretrain.signal.curve import TrainingCurve
from beit.pretrain.signal.verdict import Judge, verdict

UNIGRAM = 9.894
TOO_HIGH = [10.01, 10.02, 9.97, 10.05, 9.94, 10.02, 11.47, 10.99, 10.59, 10.09, 10.05, 10.18, 10.02, 9.99, 10.03, 9.95]
"""Bits of the first steps at 30 times the learning rate of beit_tiny_patch8_64: afterwards it learns, less than it
could."""


def curve_of(bits: list[float], *, parts: int = 1, first: int = 0, curve: TrainingCurve | None = None) -> TrainingCurve:
    curve = curve or TrainingCurve(vocab_size=1024, parts=parts)
    for step, value in enumerate(bits, first):
        for part in range(parts):
            curve.note(step, torch.tensor(value + part - (parts - 1) / 2))
    return curve


def falling(end: float, *, noise: float, seed: int = 0, steps: int = 187) -> list[float]:
    time = np.arange(steps)
    bits = end + (10.0 - end) * np.exp(-time / 30) + noise * np.random.default_rng(seed).normal(size=steps)
    return [float(value) for value in bits]


@pytest.mark.parametrize("parts", [1, 4])
def test_a_rise_above_guessing_is_an_alarm_also_when_it_is_over(parts: int) -> None:
    said = curve_of(TOO_HIGH + falling(9.5, noise=0.05), parts=parts).alarm(UNIGRAM)
    assert said.startswith("training was unstable, 10.31 bits at step 3") and "where guessing takes 10.00" in said
    assert "too high a learning rate" in said


@pytest.mark.parametrize("noise", [0.01, 0.09, 0.2])
def test_a_healthy_run_gives_no_alarm(noise: float) -> None:
    for seed in range(30):
        assert not curve_of(falling(9.5, noise=noise, seed=seed)).alarm(UNIGRAM)
        assert not curve_of(falling(9.88, noise=noise, seed=seed)).alarm(UNIGRAM), "nothing learned is another matter"
    assert not curve_of([10.01] * 40).alarm(UNIGRAM), "as it begins"


def test_a_rise_above_token_frequencies_after_they_were_beaten_is_an_alarm() -> None:
    bits = [*falling(7.0, noise=0.05, steps=104), *[9.6] * 16, *[7.0] * 40]
    said = curve_of(bits).alarm(9.0)
    assert "9.60 bits at step 1" in said and "token frequencies take 9.00" in said
    assert not curve_of(bits).alarm(9.7), "a dent below them is none"


@pytest.mark.parametrize("cut", [3, 8, 9, 20])
def test_a_resumed_run_follows_as_an_uninterrupted_one(cut: int) -> None:
    bits = TOO_HIGH + falling(9.5, noise=0.05)
    whole, before, after = (
        curve_of(bits, parts=2),
        curve_of(bits[:cut], parts=2),
        TrainingCurve(vocab_size=1024, parts=2),
    )
    before.note(cut, torch.tensor(99.0))  # a step left half way, to be done again
    after.restore(before.state())
    curve_of(bits[cut:], parts=2, first=cut, curve=after)
    assert after.alarm(UNIGRAM) == whole.alarm(UNIGRAM) != ""
    assert after.state() == whole.state()


@pytest.mark.parametrize("damage", [{}, {"low": 1, "block": 2, "peak": {}}, {"low": 1, "block": [], "peak": {"a": 1}}])
def test_a_damaged_state_is_as_good_as_none(damage: dict[str, object]) -> None:
    curve = TrainingCurve(vocab_size=1024, parts=1)
    curve.restore(damage)
    assert curve.low == math.inf and not curve.peak


def test_what_is_not_finite_is_left_to_others() -> None:
    assert not curve_of([math.nan, math.inf, *[9.9] * 20]).alarm(UNIGRAM)


def test_an_alarm_is_said_once_and_in_the_end() -> None:
    metrics = {"held_out_bits": 9.757, "unigram_bits": UNIGRAM, "unigram_acc": 0.006, "held_out_acc": 0.007}
    judge, alarm = Judge(), curve_of(TOO_HIGH).alarm(UNIGRAM)
    lines = [judge.take(metrics, step, alarm=alarm) for step in (50, 100)]
    assert ["training was unstable" in line for line in lines] == [True, False]
    assert verdict(metrics, alarm).endswith(alarm) and "unstable" not in verdict(metrics)


def pixel_curve(values: list[float], *, first: int = 0, curve: TrainingCurve | None = None) -> TrainingCurve:
    return curve_of(values, first=first, curve=curve or TrainingCurve(vocab_size=None, parts=1))


def falling_error(*, seed: int, start: float = 1.3, steps: int = 120) -> list[float]:
    noise = 0.02 * np.random.default_rng(seed).normal(size=steps)
    return [float(value) for value in 0.6 + (start - 0.6) * np.exp(-np.arange(steps) / 30) + noise]


def test_the_loss_of_pixels_has_the_alarm_too() -> None:
    leap = [1.3, 1.28, 1.25, 1.26, 1.2, 1.22, 1.18, 1.19, 2.9, 3.1, 2.8, 2.5, 2.6, 2.4, 2.2, 2.1]
    said = pixel_curve(leap + falling_error(seed=0)).alarm(0.95)
    assert (
        said.startswith("training was unstable, a squared error of 2.57 at step 1") and "the first steps took" in said
    )
    again = pixel_curve([*falling_error(seed=0), *[1.4, 1.5, 1.6, 1.5, 1.5, 1.4, 1.5, 1.4], *falling_error(seed=1)])
    assert "where predicting the mean takes 0.95" in again.alarm(0.95)
    for seed in range(30):  # a head of random weights begins above the mean
        assert not pixel_curve(falling_error(seed=seed)).alarm(0.95)
        assert not pixel_curve(falling_error(seed=seed, start=3.0)).alarm(0.95)


@pytest.mark.parametrize("done", [3, 8, 11])
def test_the_alarm_of_pixels_goes_on_where_it_was(done: int) -> None:
    values = [1.0 + 0.01 * (step % 3) for step in range(8)] + [2.0 + 0.01 * (step % 3) for step in range(8)]
    whole, before = pixel_curve(values), pixel_curve(values[:done])
    after = TrainingCurve(vocab_size=None, parts=1)
    after.restore(json.loads(json.dumps(before.state(), allow_nan=False)))
    assert pixel_curve(values[done:], first=done, curve=after).state() == whole.state()
    assert after.alarm(0.9) == whole.alarm(0.9) != ""

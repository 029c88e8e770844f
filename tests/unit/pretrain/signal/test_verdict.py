"""What is said of a run: nothing from chance, nothing twice, and in the end what it is worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from beit.pretrain.signal.spread import ImageCosts
from beit.pretrain.signal.verdict import Judge, verdict

TOKENS = {
    "held_out_bits": 3.0,
    "unigram_bits": 3.41,
    "neighbour_bits": 3.2,
    "held_out_acc": 0.1,
    "unigram_acc": 0.05,
    "train_bits": 2.9,
    "held_out_images": 30,
}
PIXELS = {"held_out_mse": 0.5, "mean_mse": 0.8, "train_mse": 0.4}


def once(metrics: Mapping[str, float]) -> str:
    return Judge().take(metrics, 100)


def costs_of(bits: float, *, num_images: int = 30, noise: float = 0.0, seed: int = 0) -> ImageCosts:
    """Images that differ by a bit from each other, always in the same way, and by `noise` from time to time."""
    own = np.random.default_rng(1).normal(size=num_images)
    change = np.random.default_rng(seed).normal(size=num_images)
    weights = np.full(num_images, 28.0)
    costs = weights * (bits + own - own.mean() + noise * (change - change.mean()))
    return ImageCosts(
        positions=np.arange(num_images), costs=costs, weights=weights, lines=weights * 3.41, num_images=num_images
    )


def lines_of(
    judge: Judge, held_out: list[float], train: list[float] | None = None, *, first: int = 1, **spread: Any
) -> Iterator[str]:
    """Evaluate every 10 steps."""
    for number, (bits, beside) in enumerate(zip(held_out, train or held_out, strict=True), first):
        costs = {
            side: costs_of(value, seed=number, **spread) for side, value in (("held_out", bits), ("train", beside))
        }
        metrics = {
            **TOKENS,
            "held_out_bits": bits,
            "train_bits": beside,
            "below_unigram_se": costs["held_out"].below_line()[1],
        }
        yield judge.take(metrics, 10 * number, costs)


def test_it_says_on_which_side_of_both_lines_the_model_is() -> None:
    assert once(TOKENS) == (
        "held-out 3.00 bits per token (training images 2.90), 0.41 below unigram and 0.20 below neighbour: learning"
    )
    between = once({**TOKENS, "held_out_bits": 3.3})
    assert "0.11 below unigram and 0.10 above neighbour: learning, not yet better than copying" in between
    assert "above unigram and" in once({**TOKENS, "held_out_bits": 3.5})
    assert "not yet better than token frequencies" in once({**TOKENS, "held_out_bits": 3.5})
    assert len("step 100000: " + once(TOKENS)) <= 2 * 80


def test_without_masks_there_is_no_neighbour_line() -> None:
    without = {name: value for name, value in TOKENS.items() if name != "neighbour_bits"}
    assert "below unigram: learning" in once(without)


def test_a_lasting_rise_beyond_chance_is_memorising_or_unstable() -> None:
    *_, first, second = lines_of(Judge(), [3.3, 2.9, 3.0, 3.0], [3.3, 3.0, 2.9, 2.8], noise=0.05)
    assert "rises" not in first, "one evaluation is none"
    assert "held-out rises since step 20 while train falls: memorising; more images or views" in second
    *_, last = lines_of(Judge(), [3.3, 2.9, 3.0, 3.0], [3.3, 2.8, 3.0, 3.0], noise=0.05)
    assert "held-out and train both rise since step 20: unstable" in last
    *_, last = lines_of(Judge(), [3.3, 2.9, 3.0, 3.0], [3.3, 2.9, 2.9, 2.9], noise=0.05)
    assert last.endswith("held-out rises since step 20")


def test_what_chance_does_is_no_trend() -> None:
    rising = [3.3, 2.99, 3.0, 3.0, 3.005]
    assert not [line for line in lines_of(Judge(), rising, noise=0.2) if "rise" in line or "unstable" in line]
    assert not [line for line in lines_of(Judge(), rising) if "rise" in line], "too small to matter"
    dented = [3.3, 2.9, 3.1, 2.85, 3.1, 2.8]
    assert not [line for line in lines_of(Judge(), dented, noise=0.05) if "rise" in line], "it does not last"


def test_too_few_images_are_said_to_be_too_few() -> None:
    lines = list(lines_of(Judge(), [3.3, 2.9, 3.05, 3.05], noise=1.0, num_images=8))
    assert "too few held-out images to tell whether it rises" in lines[2]
    assert "too few" not in lines[3], "once is enough"
    many = list(lines_of(Judge(), [3.3, 2.9, 3.05, 3.05], noise=1.0, num_images=2000))
    assert "rise" in many[3]
    (line,) = lines_of(Judge(), [3.35], num_images=8)
    assert "too few held-out images (30) to tell it from token frequencies" in line


def test_what_was_said_is_not_said_again() -> None:
    lines = list(lines_of(Judge(), [3.3, 3.0, 2.9, 2.8], noise=0.01, num_images=2000))
    assert [line.partition(": ")[2] for line in lines] == [
        "learning, not yet better than copying the nearest patch",
        "learning",
        "",
        "",
    ]


def test_far_above_the_unigram_line_after_the_warmup_is_an_alarm() -> None:
    lines = list(lines_of(Judge(grace_steps=15), [3.9, 3.9, 3.9, 3.9], noise=0.05))
    assert ["unstable" in line for line in lines] == [False, False, True, False]
    assert lines[3].endswith("neighbour"), "said once"


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_run_judges_as_an_uninterrupted_one(cut: int) -> None:
    held_out, train = [3.3, 2.9, 3.0, 3.0, 2.8], [3.3, 3.0, 2.9, 2.8, 2.7]
    whole = list(lines_of(Judge(), held_out, train, noise=0.1, num_images=700))
    before, after = Judge(), Judge()
    list(lines_of(before, held_out[:cut], train[:cut], noise=0.1, num_images=700))
    state = before.state()
    assert (
        sum(len(text) for side in state["costs"].values() for text in side.values() if isinstance(text, str)) < 50_000
    )
    after.restore(state)
    assert list(lines_of(after, held_out[cut:], train[cut:], first=cut + 1, noise=0.1, num_images=700)) == whole[cut:]


@pytest.mark.parametrize("damage", [{}, {"best": 1}, {"best": {}, "costs": {"held_out": {"costs": "?"}}, "said": ""}])
def test_a_damaged_memory_is_as_good_as_none(damage: dict[str, Any]) -> None:
    judge = Judge()
    judge.restore(damage)
    assert judge == Judge()


def test_a_run_of_before_is_judged_by_its_records() -> None:
    earlier = [
        {"step": 50, **TOKENS, "held_out_bits": 3.3, "train_bits": 3.3},
        {"step": 100, **TOKENS, "held_out_bits": 2.8, "train_bits": 3.0},
        {"step": 150, "loss": 2.0},
        {"step": 900, **TOKENS, "held_out_bits": 1.0},
    ]
    judge = Judge(earlier=earlier)
    lines = [judge.take({**TOKENS, "held_out_bits_se": 0.01}, step) for step in (200, 250)]
    assert "rises" not in lines[0] and "held-out rises since step 100 while train falls: memorising" in lines[1]


def test_other_images_than_before_are_not_paired() -> None:
    judge = Judge()
    list(lines_of(judge, [2.9], num_images=30))
    metrics = {**TOKENS, "held_out_bits_se": 0.5}
    for step in (20, 30):
        assert "rises since" not in judge.take(metrics, step, {"held_out": costs_of(3.0, num_images=31)})


@pytest.mark.parametrize(
    "metrics", [{**TOKENS, "held_out_bits": float("nan")}, {**PIXELS, "held_out_mse": float("inf")}]
)
def test_a_loss_that_is_no_number_is_not_called_learning(metrics: dict[str, float]) -> None:
    assert "diverged" in once(metrics) and "diverged" in verdict(metrics)
    assert "learning;" not in once(metrics)


def test_pixels_are_read_against_predicting_the_mean() -> None:
    assert "squared error 0.500 (training images 0.40), 62.5 % of predicting the mean (0.800): learning" in once(PIXELS)
    assert "not yet better than predicting the mean" in once({**PIXELS, "held_out_mse": 0.9})
    judge = Judge()
    judge.take({"held_out_mse": 0.45, "mean_mse": 0.8, "train_mse": 0.42}, 10)
    assert ["memorising" in judge.take(PIXELS, step) for step in (20, 30)] == [False, True]


@pytest.mark.parametrize(
    ("bits", "error", "worth"),
    [
        (
            3.0,
            0.05,
            "held-out 3.00 bits, 0.41 +- 0.10 below unigram, 10.0 % of tokens right (chance 5.0 %): expect little",
        ),
        (3.0, 0.3, "too few held-out images (30) to tell"),
        (
            3.5,
            0.01,
            "held-out 3.50 bits, 0.09 +- 0.02 above unigram, 10.0 % of tokens right (chance 5.0 %): worse than",
        ),
        (6.0, 0.3, "worse than token frequencies, nothing learned"),
        (3.42, 0.02, "nothing learned: more steps, or another learning rate"),
        (2.5, 0.01, "of some use with few labels"),
        (1.5, 0.01, "features of use"),
    ],
)
def test_the_end_says_what_the_number_is_worth(bits: float, error: float, worth: str) -> None:
    assert worth in verdict({**TOKENS, "held_out_bits": bits, "below_unigram_se": error})
    assert "+-" not in verdict(TOKENS), "a run of before"


def test_a_difference_is_known_better_than_either_evaluation() -> None:
    here, there = costs_of(3.0, noise=0.05, seed=1), costs_of(2.9, noise=0.05, seed=2)
    rise, error = here.difference(there)
    assert rise == pytest.approx(0.1) and error == pytest.approx(0.05 * math.sqrt(2 / 30), rel=0.5)
    assert here.mean()[0] == pytest.approx(3.0) and here.mean()[1] > 5 * error
    assert here.below_line()[0] == pytest.approx(0.41)


def test_the_error_of_a_few_kept_images_is_that_of_all() -> None:
    here, there = (costs_of(bits, noise=0.1, seed=seed, num_images=4000) for bits, seed in ((3.0, 1), (2.9, 2)))
    assert len(there.thinned().positions) == 512
    assert here.difference(there.thinned())[1] == pytest.approx(here.difference(there)[1], rel=0.15)

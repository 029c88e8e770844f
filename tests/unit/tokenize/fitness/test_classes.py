import numpy as np
import pytest
import torch

from beit.tokenize.fitness.classes import (
    MAX_IMAGES,
    PENALTIES,
    ClassTally,
    bags,
    colour_levels,
    colour_words,
    told_by_others,
)


def words_of_classes(num_images: int, num_classes: int, share: float, *, vocab_size: int = 64, seed: int = 0):
    """Draw grids 4 x 4 whose words are of the image's class with some probability, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    own = labels[:, None, None] + num_classes * rng.integers(0, vocab_size // num_classes, (num_images, 4, 4))
    other = rng.integers(0, vocab_size, (num_images, 4, 4))
    return np.where(rng.random((num_images, 4, 4)) < share, own, other), labels


def score(grids: np.ndarray, labels: np.ndarray, views: np.ndarray | None = None):
    tally = ClassTally(vocab_size=64, downsampling=8)
    views = np.full((len(grids), 32, 32, 3), 90, dtype=np.uint8) if views is None else views
    for part in np.array_split(np.arange(len(grids)), 3):
        tally.add(views[part], grids[part], labels[part])
    return tally.result()


def test_words_that_follow_the_class_tell_it_and_others_do_not() -> None:
    found = score(*words_of_classes(300, 4, 0.6))
    assert found.accuracy > 0.9 and found.num_images == 300 and found.num_classes == 4
    assert found.standard_error == pytest.approx(np.sqrt(found.accuracy * (1 - found.accuracy) / 300))
    assert found.colours_accuracy < 0.35, "all views have one colour"
    chance = score(*words_of_classes(600, 4, 0.0))
    assert abs(chance.accuracy - 0.25) < 4 * chance.standard_error


def test_colours_tell_classes_of_colours() -> None:
    grids, labels = words_of_classes(200, 2, 0.0)
    views = np.where(labels[:, None, None, None] == 0, 40, 200).astype(np.uint8) * np.ones((1, 32, 32, 3), np.uint8)
    found = score(grids, labels, views)
    assert found.colours_accuracy == 1.0 and found.accuracy < 0.7 and found.difference_error > 0.0


def test_one_image_left_out_is_what_fitting_without_it_gives() -> None:
    """The closed form against fits of all images but one."""
    grids, labels = words_of_classes(40, 3, 0.4, seed=3)
    rows = bags([grid.ravel() for grid in grids], np.arange(40), 64).astype(np.float64)
    centred = rows - rows.mean(axis=0)
    scale = float(np.trace(centred @ centred.T)) / 40
    by_penalty = {}
    for penalty in PENALTIES:
        predicted = np.zeros((40, 3))
        for place in range(40):
            rest = np.delete(np.arange(40), place)
            x, y = rows[rest], np.eye(3)[labels[rest]]
            middle = x.mean(axis=0)
            # Centred at all rows rather than at the rest, the closed form's penalised intercept is exact.
            gram = (x - middle).T @ (x - middle) + penalty * scale * np.eye(64)
            weight = np.linalg.solve(gram, (x - middle).T @ (y - y.mean(axis=0)))
            predicted[place] = (rows[place] - middle) @ weight + y.mean(axis=0)
        by_penalty[penalty] = float(((np.eye(3)[labels] - predicted) ** 2).sum()), predicted.argmax(axis=1) == labels
    best = min(by_penalty.values(), key=lambda found: found[0])
    assert (told_by_others(rows.astype(np.float32), labels) == best[1]).all()


def test_too_few_images_have_no_score() -> None:
    grids, labels = words_of_classes(39, 2, 0.5)
    assert score(grids, labels) is None
    grids, labels = words_of_classes(60, 2, 0.5)
    assert score(grids, np.zeros_like(labels)) is None, "one class"
    assert score(grids, np.arange(60)) is None, "every image its own class"
    assert score(grids, np.full_like(labels, -1)) is None, "no labels"


def test_rare_classes_and_unlabelled_images_are_left_out() -> None:
    grids, labels = words_of_classes(100, 2, 0.5)
    labels[:4], labels[4:10] = 7, -1
    found = score(grids, labels)
    assert found.num_images == 90 and found.num_classes == 2


def test_no_more_images_are_kept_than_the_limit() -> None:
    tally = ClassTally(vocab_size=64, downsampling=16)
    views, grids = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 2, 2), np.int64)
    for _ in range(MAX_IMAGES + 5):
        tally.add(views, grids, np.zeros(1, np.int64))
    assert tally.num_labelled == MAX_IMAGES


def test_equal_words_everywhere_tell_nothing_and_break_nothing() -> None:
    labels = np.arange(60) % 2
    told = told_by_others(np.full((60, 8), 8**-0.5, dtype=np.float32), labels)
    assert told.mean() <= 0.5


def test_colours_are_as_many_as_words_and_in_range() -> None:
    assert [colour_levels(size) for size in (2, 64, 1024, 8192)] == [2, 4, 10, 20]
    view = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    view[:8, :8] = (255, 0, 255)
    words = colour_words(view, 8, 4)
    assert words.shape == (16,) and words[0] == (3 * 4 + 0) * 4 + 3 and (words < 64).all()


def test_threads_do_not_change_what_is_told() -> None:
    grids, labels = words_of_classes(120, 3, 0.4)
    rows = bags([grid.ravel() for grid in grids], np.arange(120), 64)
    before = torch.get_num_threads()
    try:
        told = [told_by_others(rows, labels) for threads in (1, 2) if torch.set_num_threads(threads) is None]
    finally:
        torch.set_num_threads(before)
    assert (told[0] == told[1]).all()

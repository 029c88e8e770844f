import numpy as np
import pytest
import torch

from beit.tokenize.fitness.agreement import AgreementTally, above_chance, kept_bits, quarter_token


class FakeTokenizer:
    """The mean of a channel of each square of 8 px, in so many levels."""

    downsampling = 8

    def __init__(self, vocab_size: int, levels: int | None = None) -> None:
        self.vocab_size, self.levels = vocab_size, levels or vocab_size

    def encode(self, images: np.ndarray) -> torch.Tensor:
        assert images.shape[1:3] == (32, 32), "a tokenizer with positions takes one side only"
        batch = len(images)
        means = images[..., 0].reshape(batch, 4, 8, 4, 8).mean(axis=(2, 4))
        return torch.from_numpy((means * self.levels / 256).astype(np.int64))


class RandomTokenizer(FakeTokenizer):
    """Words that have nothing to do with the image."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.rng = np.random.default_rng(0)

    def encode(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.rng.integers(0, self.vocab_size, (len(images), 4, 4)))


class Blind(FakeTokenizer):
    """Sees which quarter of the range the brightest square is in; mirrored, moved, it is the same."""

    def encode(self, images: np.ndarray) -> torch.Tensor:
        place = np.arange(len(images)) % self.vocab_size
        return torch.from_numpy(np.broadcast_to(place[:, None, None], (len(images), 4, 4)).copy())


def measure(tokenizer: FakeTokenizer, num_views: int = 64):
    views = np.random.default_rng(1).integers(0, 256, (num_views, 10, 10, 3)).astype(np.uint8)
    views = views.repeat(4, axis=1).repeat(4, axis=2)  # squares of 4 px, 40 px wide
    tally = AgreementTally(tokenizer)  # type: ignore[arg-type]
    for batch in np.array_split(views, 4):
        tally.add(batch, tokenizer.encode(batch[:, :32, :32]).numpy())
    return tally.result(np.zeros(tokenizer.vocab_size, dtype=np.int64))


def test_mirrored_views_are_compared_at_the_mirrored_places() -> None:
    found = measure(FakeTokenizer(16))
    assert found.equal_shares["mirror"] == 1.0 and found.above_chance["mirror"] == 1.0
    assert found.equal_shares["all"] < found.equal_shares["colours"] < 1.0
    assert found.num_views == 64 and found.shift_px == 2


def test_words_that_do_not_depend_on_the_change_all_stay() -> None:
    found = measure(Blind(16))
    assert set(found.equal_shares.values()) == {1.0} and found.kept_bits == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize("vocab_size", [2, 16, 1024])
def test_words_by_chance_agree_by_chance_and_keep_nothing(vocab_size: int) -> None:
    found = measure(RandomTokenizer(vocab_size), num_views=400)
    assert abs(found.above_chance["all"]) < 0.04 and found.kept_bits < 0.01
    assert found.chance == pytest.approx(1 / vocab_size, rel=0.1)


def test_a_single_word_agrees_always_and_means_nothing() -> None:
    found = measure(FakeTokenizer(4, levels=1))
    assert found.chance == 1.0 and set(found.equal_shares.values()) == {1.0}
    assert set(found.above_chance.values()) == {0.0} and found.kept_bits == 0.0


def test_few_words_do_not_look_good() -> None:
    """Two words stay more often than sixteen, which tell more nevertheless."""
    few, many = measure(FakeTokenizer(2)), measure(FakeTokenizer(16))
    assert few.equal_shares["colours"] > many.equal_shares["colours"]
    kept = [measure(Blind(size)).kept_bits for size in (2, 16)]
    assert kept[0] == pytest.approx(1.0, abs=0.01) and kept[1] > 3.9


@pytest.mark.parametrize("kept_share", [0.1, 0.5, 0.9])
def test_bits_are_those_of_the_model_that_made_the_pairs(kept_share: float) -> None:
    """Pairs of a word that stays with a probability, else is drawn anew; their mutual information is known."""
    frequency = np.array([0.4, 0.3, 0.2, 0.1])
    joint = (1.0 - kept_share) * np.outer(frequency, frequency) + kept_share * np.diag(frequency)
    exact = float((joint * np.log2(joint / np.outer(frequency, frequency))).sum())
    pairs = np.rint(joint * 1e6).astype(np.int64)
    share = above_chance(float(np.trace(pairs) / pairs.sum()), float((frequency**2).sum()))
    assert share == pytest.approx(kept_share, abs=1e-4)
    found = kept_bits(np.diag(pairs), int(pairs.sum()), pairs.sum(axis=1), kept_share=share)
    # Pairs of different words are known to differ by the model, but not by how much: the bound is below.
    assert found <= exact + 1e-6 and found >= 0.9 * exact


def test_bits_are_no_less_than_none() -> None:
    assert kept_bits(np.array([1, 0]), 9, np.array([5, 4]), kept_share=-0.1) == 0.0


@pytest.mark.parametrize(("downsampling", "px"), [(2, 1), (4, 1), (8, 2), (16, 4)])
def test_the_step_is_a_quarter_of_a_token(downsampling: int, px: int) -> None:
    assert quarter_token(downsampling) == px

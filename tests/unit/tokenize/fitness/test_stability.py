import numpy as np
import torch

from beit.tokenize.fitness.stability import StabilityTally, shift_margin, shifts_of, through_jpeg


class FakeTokenizer:
    """The red value of each square's first pixel: moves along with whole tokens, and with nothing else."""

    downsampling = 8

    def encode(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images[:, :: self.downsampling, :: self.downsampling, 0].astype(np.int64))


def measure(views: np.ndarray, tokenizer: FakeTokenizer):
    """`views` are 8 px larger than the windows."""
    tally = StabilityTally(tokenizer, {"bfloat16": tokenizer})  # type: ignore[arg-type,dict-item]
    for batch in np.array_split(views, 3):
        tally.add(batch, tokenizer.encode(batch[:, :32, :32]).numpy())
    return tally.result()


def test_whole_tokens_move_along_and_flat_pictures_never_change() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    found = {shift.shift_px: shift for shift in measure(noise, FakeTokenizer()).shifts}
    assert sorted(found) == [1, 2, 4, 8]
    assert found[8].is_whole_tokens and found[8].equal_share == 1.0
    assert not found[1].is_whole_tokens and found[1].equal_share < 0.1
    flat = np.full((6, 40, 40, 3), 128, dtype=np.uint8)
    assert all(shift.equal_share == 1.0 for shift in measure(flat, FakeTokenizer()).shifts)


def test_a_step_to_the_right_is_a_step_to_the_right() -> None:
    """Columns 0..39 hold their own number: after a shift by s, every token's value is s larger, so none stays."""
    views = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, None, :, None], (6, 40, 40, 3)).copy()
    found = {shift.shift_px: shift.equal_share for shift in measure(views, FakeTokenizer()).shifts}
    assert found == {1: 0.0, 2: 0.0, 4: 0.0, 8: 1.0}


def test_every_window_has_the_side_of_the_views() -> None:
    """A tokenizer with positions takes no other."""

    class OneSide(FakeTokenizer):
        def encode(self, images: np.ndarray) -> torch.Tensor:
            assert images.shape[1:3] == (32, 32)
            return super().encode(images)

    noise = np.random.default_rng(0).integers(0, 256, (9, 40, 40, 3), dtype=np.uint8)
    found = measure(noise, OneSide())
    assert found.num_views == 9
    assert found.dtype_equal_shares == {"bfloat16": 1.0}
    assert 0.0 < found.jpeg_equal_share < 1.0


def test_shifts_include_one_token() -> None:
    assert shifts_of(4) == [1, 2, 4] and shifts_of(16) == [1, 2, 4, 16]
    assert shift_margin(2) == 4 and shift_margin(16) == 16


def test_jpeg_keeps_the_shape_and_nearly_the_picture() -> None:
    views = np.full((2, 16, 16, 3), 90, dtype=np.uint8)
    assert np.abs(through_jpeg(views).astype(int) - views).max() <= 2

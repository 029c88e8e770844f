import pytest

from beit.pretrain.signal.verdict import verdict

TOKENS = {
    "step": 200,
    "held_out_bits": 3.0,
    "unigram_bits": 3.41,
    "neighbour_bits": 3.2,
    "held_out_acc": 0.1,
    "unigram_acc": 0.05,
    "train_bits": 2.9,
}
PIXELS = {"held_out_mse": 0.5, "mean_mse": 0.8, "train_mse": 0.4}


def test_it_says_on_which_side_of_both_lines_the_model_is():
    assert (
        "3.00 bits per token (training images 2.90), 0.41 below unigram and 0.20 below neighbour: learning"
        in verdict(TOKENS)
    )
    between = verdict({**TOKENS, "held_out_bits": 3.3})
    assert "0.11 below unigram and 0.10 above neighbour: learning, not yet better than copying" in between
    assert "above unigram and" in verdict({**TOKENS, "held_out_bits": 3.5})
    assert "not yet better than token frequencies" in verdict({**TOKENS, "held_out_bits": 3.5})
    assert "accuracy 10.0% (chance 5.0%)" in verdict(TOKENS)


def test_without_masks_there_is_no_neighbour_line():
    without = {name: value for name, value in TOKENS.items() if name != "neighbour_bits"}
    assert "below unigram: learning" in verdict(without)


def test_held_out_up_and_train_down_is_memorising():
    earlier = [
        {"step": 50, **{**TOKENS, "held_out_bits": 3.3, "train_bits": 3.3}},
        {"step": 100, **{**TOKENS, "step": 100, "held_out_bits": 2.9, "train_bits": 3.0}},
        {"step": 150, "loss": 2.0},
    ]
    assert "held-out rises since step 100 while train falls: memorising; more images or views" in verdict(
        TOKENS, earlier
    )
    assert "unstable" in verdict({**TOKENS, "train_bits": 3.2}, earlier)


def test_small_changes_and_improvements_are_no_trend():
    earlier = [{**TOKENS, "step": 100, "held_out_bits": 2.99, "train_bits": 3.0}]
    assert "rises" not in verdict(TOKENS, earlier)
    assert "rises" not in verdict(TOKENS, [{**TOKENS, "step": 100, "held_out_bits": 3.2}])


@pytest.mark.parametrize(
    "metrics", [{**TOKENS, "held_out_bits": float("nan")}, {**PIXELS, "held_out_mse": float("inf")}]
)
def test_a_loss_that_is_no_number_is_not_called_learning(metrics):
    assert "diverged" in verdict(metrics)
    assert "learning;" not in verdict(metrics)


def test_pixels_are_read_against_predicting_the_mean():
    assert "squared error 0.500 (training images 0.40), 62% of predicting the mean (0.800): learning" in verdict(PIXELS)
    assert "not yet better than predicting the mean" in verdict({**PIXELS, "held_out_mse": 0.9})
    earlier = [{"step": 10, "held_out_mse": 0.45, "mean_mse": 0.8, "train_mse": 0.42}]
    assert "memorising" in verdict(PIXELS, earlier)

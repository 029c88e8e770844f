import math

import numpy as np
import pytest
import torch

from beit.common.distributed import World
from beit.pretrain.evaluate import held_out_metrics, unigram_nats, verdict
from beit.pretrain.model import MimLoss

WORLD = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


class StepWithKnownLoss:
    """Stands in for the objective: batch i costs losses[i] nats per masked token, half of them right."""

    def __init__(self, losses):
        self.losses = iter(losses)

    def forward(self, model, batch):
        masked = batch["bool_masked_pos"].sum()
        return MimLoss(torch.tensor(next(self.losses)), masked // 2, masked)


def batch(token_ids, masked):
    return {
        "images": torch.zeros(len(token_ids), 3, 4, 4, dtype=torch.uint8),
        "token_ids": torch.tensor(token_ids),
        "bool_masked_pos": torch.tensor(masked, dtype=torch.bool),
        "keys": ["k"] * len(token_ids),
    }


def test_unigram_is_the_smoothed_cross_entropy_of_the_histogram():
    nats = unigram_nats(np.array([6, 2, 0]))
    assert nats.tolist() == pytest.approx([-math.log(p / 11) for p in (7, 3, 1)])


def test_metrics_weight_batches_by_their_masked_tokens():
    batches = [batch([[0, 1, 1, 0]], [[1, 1, 1, 1]]), batch([[1, 1, 0, 0]], [[1, 1, 0, 0]])]
    unigram = torch.tensor([1.0, 2.0])
    metrics = held_out_metrics(None, batches, step=StepWithKnownLoss([3.0, 6.0]), unigram=unigram, world=WORLD)
    assert metrics["held_out_bits"] == pytest.approx((4 * 3.0 + 2 * 6.0) / 6 / math.log(2))
    assert metrics["unigram_bits"] == pytest.approx((1 + 2 + 2 + 1 + 2 + 2) / 6 / math.log(2))
    assert metrics["held_out_acc"] == pytest.approx(3 / 6)
    assert metrics["unigram_acc"] == pytest.approx(2 / 6)
    assert metrics["held_out_images"] == 2


def test_nothing_held_out_gives_no_metrics():
    assert held_out_metrics(None, [], step=StepWithKnownLoss([]), unigram=torch.ones(2), world=WORLD) == {}


def test_verdict_says_on_which_side_of_the_line_the_model_is():
    metrics = {"held_out_bits": 3.0, "unigram_bits": 3.4, "held_out_acc": 0.1, "unigram_acc": 0.05}
    assert "0.40 bits per token below the unigram line: learning" in verdict(metrics)
    assert "above the unigram line: not yet" in verdict({**metrics, "held_out_bits": 3.5})

import math

import numpy as np
import pytest
import torch

from beit.common.processes.distributed import World
from beit.common.training.data import padded
from beit.common.vit.transform import normalize_images
from beit.pretrain.model import MaskedPrediction, masked_positions, pixel_targets
from beit.pretrain.signal.baselines import fit_baselines
from beit.pretrain.signal.held_out import pixel_metrics, token_metrics
from beit.pretrain.step import MimStep, PixelStep

WORLD = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
STEP = MimStep(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
MASKS = [[[1, 1, 1, 0]], [[1, 1, 0, 0]]]
IDS = [[[0, 1, 1, 0]], [[1, 1, 0, 0]]]


def batches():
    for masks, ids in zip(MASKS, IDS, strict=True):
        yield {
            "images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
            "token_ids": torch.tensor(ids),
            "bool_masked_pos": torch.tensor(masks, dtype=torch.bool),
            "keys": ["k"],
        }


class AlwaysSure:
    """Predicts word 1 with chance 0.8 in the first patch and 0.4 elsewhere."""

    def __call__(self, images, mask, predicted):
        positions, valid = masked_positions(predicted, 4)
        chance = torch.where(positions == 0, 0.8, 0.4)
        return MaskedPrediction(torch.stack([1 - chance, chance], dim=-1).log(), positions, valid)


def measure(given=None, baselines=None, masks=MASKS):
    baselines = baselines or fit_baselines(
        np.array(IDS)[:, 0], np.array(masks, bool)[:, 0], grid_size=(2, 2), vocab_size=2
    )
    given = list(batches()) if given is None else given
    given = padded(given, len(given), {}, WORLD)
    return token_metrics(AlwaysSure(), given, step=STEP, baselines=baselines, grid_size=(2, 2), world=WORLD)


def test_token_metrics_are_means_over_masked_tokens():
    metrics = measure()
    costs = [0.2, 0.4, 0.4, 0.8, 0.4]  # chances of the right word: 0 1 1 | 1 1
    assert metrics["bits"] == pytest.approx(-sum(math.log2(chance) for chance in costs) / 5)
    assert metrics["acc"] == pytest.approx(1 / 5)  # only the first patch of the second image
    assert metrics["unigram_bits"] == pytest.approx(1.0)  # four of each word
    assert metrics["unigram_acc"] == pytest.approx(1 / 5)  # of equals, the first word
    assert metrics["images"] == 2
    assert 0 < metrics["neighbour_bits"] < 1.0  # in both images, another word is masked than is visible


def test_all_tokens_are_measured_where_nothing_is_masked():
    unmasked = np.zeros((2, 1, 4), bool)
    given = [{**batch, "bool_masked_pos": torch.zeros(1, 4, dtype=torch.bool)} for batch in batches()]
    metrics = measure(given, masks=unmasked)
    assert metrics["unigram_bits"] == pytest.approx(1.0)
    assert "neighbour_bits" not in metrics
    assert metrics["acc"] == pytest.approx(4 / 8)  # "0" everywhere but in the first patch


def test_no_images_give_no_metrics():
    assert measure([]) == {}
    assert measure([{"keys": [], "bad_samples": ["one"]}]) == {}


def test_pixel_metrics_compare_with_the_variance_of_the_target():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8, generator=generator)
    masks = torch.rand(6, 4, generator=generator) < 0.6
    step = PixelStep(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), patch_size=2, normalize_patches=False)

    def zero(images, mask):
        positions, valid = masked_positions(mask, 4)
        return MaskedPrediction(torch.zeros(*positions.shape, 12), positions, valid)

    given = [
        {"images": images[part], "bool_masked_pos": masks[part], "keys": ["k"]} for part in (slice(0, 4), slice(4, 6))
    ]
    metrics = pixel_metrics(zero, padded(given, 2, {}, WORLD), step=step, world=WORLD)
    targets = pixel_targets(normalize_images(images, step.mean, step.std), 2, normalize_patches=False)[masks]
    assert metrics["mse"] == pytest.approx(targets.square().mean().item(), rel=1e-5)
    assert metrics["mean_mse"] == pytest.approx(targets.var(0, correction=0).mean().item(), rel=1e-5)
    assert metrics["images"] == 6

"""Probes of frozen features, against formulas written out."""

import math

import pytest
import torch

from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.features import (
    BlockScore,
    Features,
    best_block,
    extract_features,
    fit_linear,
    knn_predict,
    knn_scores,
    pool_features,
    probe_blocks,
)
from beit.common.vit.transform import normalize_images
from beit.common.vit.vit import VisionTransformer

NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def make_encoder():
    torch.manual_seed(0)
    return VisionTransformer(ViTConfig(img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2)).eval()


def make_batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        images = torch.randint(0, 256, (size, 3, 16, 16), dtype=torch.uint8, generator=generator)
        yield {"images": images, "labels": torch.arange(size)}


def extract(encoder, **settings):
    return extract_features(
        encoder, make_batches(4, 3), device=torch.device("cpu"), normalization=NORMALIZATION, **settings
    )


@pytest.mark.parametrize("pooling", ["mean", "cls", "cls_mean"])
def test_features_are_the_pooled_stream_after_every_block(pooling):
    encoder = make_encoder()
    features = extract(encoder, pooling=pooling)
    assert features.labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    images = torch.cat([normalize_images(batch["images"], *NORMALIZATION) for batch in make_batches(4, 3)])
    with torch.no_grad():
        hidden = torch.stack(encoder.forward_intermediates(images, [0, 1, 2]))
    wanted = {"cls": hidden[:, :, 0], "mean": hidden[:, :, 1:].mean(2)}
    wanted["cls_mean"] = torch.cat([wanted["cls"], wanted["mean"]], dim=-1)
    torch.testing.assert_close(features.blocks, wanted[pooling])


@pytest.mark.parametrize("expected", [None, 7, 20])
def test_features_are_kept_in_few_pieces_however_many_batches_there_are(expected):
    encoder, sizes = make_encoder(), (1, 2, 1, 3)
    found = extract_features(
        encoder, make_batches(*sizes), device=torch.device("cpu"), normalization=NORMALIZATION, num_images=expected
    )
    alone = [
        extract_features(encoder, [batch], device=torch.device("cpu"), normalization=NORMALIZATION)
        for batch in make_batches(*sizes)
    ]
    assert torch.equal(found.blocks, torch.cat([part.blocks for part in alone], dim=1))
    assert torch.equal(found.labels, torch.cat([part.labels for part in alone]))
    assert found.blocks.is_contiguous() and found.blocks.untyped_storage().nbytes() == found.blocks.nbytes


def test_extraction_leaves_no_hook_behind():
    encoder = make_encoder()
    extract(encoder)
    assert not any(block._forward_hooks for block in encoder.blocks)


def test_extraction_needs_a_normalization():
    with pytest.raises(ValueError, match="normalization"):
        extract_features(make_encoder(), make_batches(2), device=torch.device("cpu"))


@pytest.mark.parametrize(("pooling", "width"), [("mean", 16), ("cls_mean", 32)])
def test_no_images_have_no_features(pooling, width):
    device = torch.device("cpu")
    features = extract_features(make_encoder(), [], device=device, normalization=NORMALIZATION, pooling=pooling)
    assert features.blocks.shape == (3, 0, width)
    assert features.labels.shape == (0,)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="must be mean, cls or cls_mean"):
        pool_features(torch.ones(1, 3, 2), "max")


def test_pooling_is_float32_under_bf16():
    assert pool_features(torch.ones(1, 3, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_knn_weights_votes_by_the_exponential_of_the_cosine():
    train = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    query = torch.tensor([[4.0, 0.0]])
    scores = knn_scores(train, torch.tensor([0, 1, 1]), query, num_classes=2, ks=(1, 3), temperature=0.5)
    assert scores.shape == (2, 1, 2)
    assert scores[0, 0].tolist() == [1.0, 0.0]
    tail = [math.exp((cosine - 1) / 0.5) for cosine in (0.0, math.sqrt(0.5))]
    assert scores[1, 0].tolist() == pytest.approx([1.0, sum(tail)])


def test_more_neighbours_than_images_ask_all_images():
    train = torch.eye(3)
    assert knn_predict(train, torch.arange(3), train, num_classes=3, ks=(50,)).tolist() == [[0, 1, 2]]


def test_knn_in_chunks_equals_knn_at_once():
    generator = torch.Generator().manual_seed(0)
    train, queries = (torch.randn(size, 4, generator=generator) for size in (50, 1500))
    labels = torch.arange(50) % 5
    chunked = knn_predict(train, labels, queries, num_classes=5, ks=(3, 7))
    whole = knn_scores(train, labels, queries, num_classes=5, ks=(3, 7)).argmax(-1)
    assert torch.equal(chunked, whole)


def test_linear_probe_reaches_the_minimum_of_its_cost():
    generator = torch.Generator().manual_seed(0)
    features = 3 * torch.randn(60, 5, generator=generator) + 10
    features[:, 4] = 2.0  # a constant channel
    labels = torch.arange(60) % 3
    features[:, 0] += labels
    probe = fit_linear(features, labels, num_classes=3, l2=0.1)
    std = features.std(0, correction=0)
    inputs = ((features - features.mean(0)) / std.clamp(min=1e-6)).double()
    weight = (probe.weight * std).double().requires_grad_()
    bias = (probe.bias + probe.weight @ features.mean(0)).double().requires_grad_()
    cost = torch.nn.functional.cross_entropy(inputs @ weight.T + bias, labels) + 0.05 * weight.square().sum()
    cost.backward()
    assert weight.grad.abs().max() < 1e-4
    assert bias.grad.abs().max() < 1e-4
    assert not probe.weight[:, 4].any()


def test_linear_probe_works_without_gradients_and_in_inference_mode():
    features, labels = torch.eye(4), torch.arange(4)
    wanted = fit_linear(features, labels, num_classes=4).weight
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fit_linear(features * 1, labels * 1, num_classes=4).weight, wanted)


def test_every_block_is_scored_and_the_best_linear_one_found():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    useless = torch.randn(40, 8, generator=generator)
    useful = torch.eye(4)[labels] + 0.05 * torch.randn(40, 4, generator=generator)
    blocks = torch.stack([useless, torch.cat([useful, useful], dim=1)])
    scores = probe_blocks(Features(blocks[:, :20], labels[:20]), Features(blocks[:, 20:], labels[20:]), num_classes=4)
    assert [score.block for score in scores] == [0, 1]
    assert scores[1].knn_acc == scores[1].linear_acc == 1.0
    assert scores[0].linear_acc < 0.7
    assert best_block(scores) == 1


def test_of_equally_good_blocks_the_deeper_one_is_best():
    assert best_block([BlockScore(0, 0.9, 0.5), BlockScore(1, 0.1, 0.5), BlockScore(2, 1.0, 0.4)]) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocks_are_scored_in_float32_under_autocast(dtype):
    # As at an evaluation during pre-training on a device whose training is in half precision.
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(60, 8, generator=generator) for _ in range(2))
    labels = torch.arange(60) % 3
    expected = fit_linear(own, labels, num_classes=3).logits(other)
    votes = knn_scores(own, labels, other, num_classes=3)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(fit_linear(own, labels, num_classes=3).logits(other), expected)
        assert torch.equal(knn_scores(own, labels, other, num_classes=3), votes)

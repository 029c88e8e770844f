"""The loss of a micro-batch: against torch's own, its divisor, and what is ignored."""

import pytest
import torch
from torch import nn

from beit.finetune.masks.classes import IGNORED
from beit.finetune.segmentation.step import SegmentationStep, pixel_loss


def case(classes=5, grid=4, side=12, images=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, grid, grid, generator=generator)
    masks = torch.randint(0, classes, (images, side, side), generator=generator).to(torch.uint8)
    masks[0, :5] = IGNORED
    return logits.requires_grad_(), masks


def reference(logits, masks, weights=None):
    large = nn.functional.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)
    total = nn.functional.cross_entropy(large, masks.long(), weight=weights, ignore_index=IGNORED, reduction="sum")
    right = ((large.argmax(1) == masks) & (masks != IGNORED)).sum()
    return total / masks.numel(), right


@pytest.mark.parametrize("classes", [2, 5, 150])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("grid", "side"), [(4, 12), (7, 7), (9, 5)])
def test_loss_and_gradient_are_those_of_torch(classes, weighted, grid, side):
    logits, masks = case(classes, grid, side)
    weights = torch.rand(classes) if weighted else None
    loss, right = pixel_loss(logits, masks, weights)
    wanted, wanted_right = reference(logits, masks, weights)
    torch.testing.assert_close(loss, wanted)
    assert right == wanted_right
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    (wanted_gradient,) = torch.autograd.grad(3 * wanted, logits)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-7)


def test_a_step_does_not_depend_on_how_it_is_cut():
    logits, masks = case(images=4)
    whole, _ = pixel_loss(logits, masks)
    parts = torch.stack([pixel_loss(*pair)[0] for pair in zip(logits.split(1), masks.split(1), strict=True)])
    torch.testing.assert_close(parts.mean(), whole)


def test_nothing_labelled_costs_nothing():
    logits, masks = case()
    masks[:] = IGNORED
    loss, right = pixel_loss(logits, masks)
    assert (float(loss.detach()), int(right)) == (0.0, 0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient.any()


def test_half_precision_logits_are_summed_in_single():
    logits, masks = case(classes=150, grid=8, side=64)
    half = logits.detach().bfloat16().requires_grad_()
    loss, _ = pixel_loss(half, masks)
    torch.testing.assert_close(loss, reference(half.float(), masks)[0])
    (gradient,) = torch.autograd.grad(loss, half)
    assert gradient.dtype == torch.bfloat16


class Heads(nn.Module):
    """Two convolutions that stand for a segmenter with an auxiliary head."""

    def __init__(self, classes=3, auxiliary=True):
        super().__init__()
        torch.manual_seed(0)
        self.main = nn.Conv2d(3, classes, 4, stride=4)
        self.other = nn.Conv2d(3, classes, 4, stride=4) if auxiliary else None

    def forward(self, images, with_auxiliary=False):
        assert with_auxiliary
        return self.main(images), None if self.other is None else self.other(images)


def batch(images=2, side=8):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, 3, side, side), generator=generator).to(torch.uint8)
    masks = torch.randint(0, 3, (images, side, side), generator=generator).to(torch.uint8)
    masks[:, 0] = IGNORED
    return {"images": pixels, "masks": masks}


def step(**settings):
    return SegmentationStep(mean=(0.5,) * 3, std=(0.5,) * 3, **settings)


def test_the_auxiliary_head_counts_as_much_as_it_is_told():
    model, rows = Heads(), batch()
    images = rows["images"].float() / 127.5 - 1
    main, other = (reference(head(images), rows["masks"]) for head in (model.main, model.other))
    loss, metrics = step(auxiliary_weight=0.4)(model, rows)
    torch.testing.assert_close(loss, main[0] + 0.4 * other[0])
    torch.testing.assert_close(metrics["auxiliary_loss"], other[0].detach())
    torch.testing.assert_close(metrics["train_pixel_accuracy"], main[1] / (2 * 7 * 8))


def test_without_auxiliary_head_there_is_no_such_number():
    loss, metrics = step()(Heads(auxiliary=False), batch())
    assert set(metrics) == {"train_pixel_accuracy"}
    assert not any(value.requires_grad for value in metrics.values())
    assert loss.requires_grad


def test_a_batch_without_labels_is_no_accident():
    rows = batch()
    rows["masks"][:] = IGNORED
    loss, metrics = step(auxiliary_weight=0.4)(Heads(), rows)
    loss.backward()
    assert float(loss.detach()) == 0 == float(metrics["train_pixel_accuracy"]) == float(metrics["auxiliary_loss"])

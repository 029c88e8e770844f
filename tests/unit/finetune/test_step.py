"""The objective of one micro-batch."""

import torch
from torch import nn

from beit.finetune.step import ClassificationStep, class_logits


class Echo(nn.Module):
    """Returns the mean of each channel, so that logits are known."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def batch():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[0, 1] = 255
    images[1, 2] = 255
    return {"images": images, "labels": torch.tensor([1, 0])}


def test_loss_is_the_smoothed_cross_entropy_of_normalised_pixels():
    step = ClassificationStep(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), label_smoothing=0.3)
    loss, metrics = step(Echo(), batch(), 0)
    logits = torch.tensor([[-2.0, 2.0, -2.0], [-2.0, -2.0, 2.0]])
    log_p = logits.log_softmax(1)
    target = torch.full((2, 3), 0.1)
    target[0, 1] = target[1, 0] = 0.8
    torch.testing.assert_close(loss, -(target * log_p).sum(1).mean())
    assert metrics["train_top1"] == 0.5
    assert not metrics["train_top1"].requires_grad


def test_logits_are_float32_whatever_the_model_computes_in():
    class Half(Echo):
        def forward(self, images):
            return super().forward(images).bfloat16()

    assert class_logits(Half(), batch()["images"], mean=(0, 0, 0), std=(1, 1, 1)).dtype == torch.float32

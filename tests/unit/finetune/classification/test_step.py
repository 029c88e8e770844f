"""The objective of one micro-batch."""

import torch
from torch import nn

from beit.finetune.augment.settings import MixConfig
from beit.finetune.classification.step import ClassificationStep, balanced_weights, class_logits


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


def objective(**settings):
    return ClassificationStep(**{"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "label_smoothing": 0.3} | settings)


LOG_P = torch.tensor([[-2.0, 2.0, -2.0], [-2.0, -2.0, 2.0]]).log_softmax(1)


def test_mixed_loss_is_the_cross_entropy_of_the_mixed_images_and_targets(monkeypatch):
    monkeypatch.setattr("beit.finetune.augment.mixing.beta", lambda rng, alpha: 0.75)
    loss, metrics = objective(mix=MixConfig(cutmix_alpha=0.0))(Echo(), batch(), 0)
    log_p = torch.tensor([[-2.0, 1.0, -1.0], [-2.0, -1.0, 1.0]]).log_softmax(1)
    own, other = 0.75 * 0.7 + 0.1, 0.25 * 0.7 + 0.1
    targets = torch.tensor([[other, own, 0.1], [own, other, 0.1]])
    torch.testing.assert_close(loss, -(targets * log_p).sum(1).mean())
    assert metrics["train_top1"] == 0.5


def test_soft_targets_without_mixing_give_the_plain_loss():
    plain, _ = objective()(Echo(), batch(), 0)
    weighted, _ = objective(class_weights=torch.ones(3))(Echo(), batch(), 0)
    torch.testing.assert_close(plain, weighted)


def test_balanced_weights_make_every_class_count_alike():
    weights = balanced_weights([6, 3, 0, 1])
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 10 / 9, 0.0, 10 / 3]))
    loss, _ = objective(class_weights=torch.tensor([1.0, 5.0, 1.0]), label_smoothing=0.0)(Echo(), batch(), 0)
    torch.testing.assert_close(loss, -(5 * LOG_P[0, 1] + LOG_P[1, 0]) / 2)


def test_several_labels_are_binary_cross_entropy():
    table = torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 0, 0]])
    one = {**batch(), "labels": torch.tensor([0, -1])}
    loss, metrics = objective(label_table=table, label_smoothing=0.0)(Echo(), one, 0)
    p = torch.sigmoid(torch.tensor([[-2.0, 2.0, -2.0], [-2.0, -2.0, 2.0]]))
    y = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    torch.testing.assert_close(loss, -(y * p.log() + (1 - y) * (1 - p).log()).mean())
    assert metrics["train_accuracy"] == torch.tensor(4 / 6)


def test_erased_pixels_reach_the_model():
    seen = []

    class Spy(Echo):
        def forward(self, images):
            seen.append(images)
            return super().forward(images)

    boxes = torch.tensor([[0, 0, 2, 2, 1, 2], [0, 0, 0, 0, 0, 0]])
    objective()(Spy(), {**batch(), "erase_boxes": boxes}, 0)
    assert (seen[0][0, 0] != -2.0).sum() == 4
    assert (seen[0][1, 0] == -2.0).all()

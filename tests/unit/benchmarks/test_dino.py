"""DINO's loss, centre, head and teacher are those of the paper, and of a public implementation where there is one."""

import importlib.util
import math
import sys
import types
from pathlib import Path

import pytest
import torch

from beit.benchmarks.dino import (
    Dino,
    DinoConfig,
    Head,
    centred_targets,
    dino_loss,
    teacher_momentum,
    teacher_temperature,
    updated_center,
)
from beit.common.errors import InputError
from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer

SHAPE = ViTConfig(
    **{"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_path": 0.0},
    **{"use_mask_token": False, "final_norm": True, "mlp_ratio": 2.0},
)
SMALL = {"outputs": 12, "hidden_dim": 16, "bottleneck_dim": 8, "local_crops": 3, "local_size": 8}


def test_the_loss_is_that_of_the_paper_pair_by_pair():
    torch.manual_seed(0)
    taught, answers, center = torch.randn(2, 3, 7), torch.randn(5, 3, 7), torch.randn(7)
    found = dino_loss(centred_targets(taught, center, 0.05), answers, 0.1)
    terms = []
    for g in range(2):  # algorithm 1 of the paper: H(t, s) = -(t * log(s)).sum(dim=1).mean()
        for v in range(5):
            if v != g:
                target = torch.softmax((taught[g] - center) / 0.05, dim=1)
                student = torch.softmax(answers[v] / 0.1, dim=1)
                terms.append(-(target * torch.log(student)).sum(dim=1).mean())
    assert len(terms) == 8 and found.item() == pytest.approx(sum(terms).item() / 8, rel=1e-5)


def test_the_center_moves_towards_the_mean_of_what_was_taught():
    taught, center = torch.randn(2, 3, 7), torch.randn(7)
    expected = 0.9 * center + 0.1 * torch.cat(list(taught)).mean(0)
    assert torch.allclose(updated_center(center, taught, 0.9), expected, atol=1e-6)


def lightly_loss():
    """Return lightly's class, past its packages, which ask for torchvision; None where lightly is not installed."""
    found = importlib.util.find_spec("lightly")
    if found is None:
        return None
    root, names = Path(found.origin).parent, ("models", "models.modules", "loss")
    before = dict(sys.modules)
    try:
        for name in ("lightly", *(f"lightly.{name}" for name in names)):
            sys.modules[name] = package = types.ModuleType(name)
            package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        for name in ("models.modules.center", "loss.dino_loss"):
            module = importlib.import_module(f"lightly.{name}")
            parent, _, leaf = f"lightly.{name}".rpartition(".")
            setattr(sys.modules[parent], leaf, module)
        return module.DINOLoss
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lightly"]:
            del sys.modules[name]
        sys.modules |= {name: module for name, module in before.items() if name.startswith("lightly")}


@pytest.mark.reference
def test_lightly_gives_the_same_losses_and_centers():
    kind = lightly_loss()
    if kind is None:
        pytest.skip("lightly is not installed (pip install --no-deps lightly)")
    torch.manual_seed(0)
    theirs, center = kind(output_dim=7, teacher_temp=0.05, student_temp=0.1, center_momentum=0.9), torch.zeros(7)
    for _ in range(3):
        taught, answers = torch.randn(2, 4, 7), torch.randn(6, 4, 7)
        expected = theirs(list(taught), list(answers), teacher_temp=0.05)
        assert dino_loss(centred_targets(taught, center, 0.05), answers, 0.1).item() == pytest.approx(
            expected.item(), rel=1e-5
        )
        center = updated_center(center, taught, 0.9)
        assert torch.allclose(center, theirs.center.flatten(), atol=1e-6)


def test_the_last_layer_is_a_linear_one_normalised_by_weight():
    head = Head(SHAPE, DinoConfig(**SMALL))
    features = torch.randn(5, 24)
    plain = torch.nn.Linear(8, 12, bias=False)
    plain.weight.data.copy_(head.prototypes)
    normed = torch.nn.utils.parametrizations.weight_norm(plain)
    normed.parametrizations.weight.original0.data.fill_(1.0)
    expected = normed(torch.nn.functional.normalize(head.layers(features), dim=-1))
    assert torch.allclose(head(features), expected, atol=1e-6) and head(features).abs().max() <= 1


def test_crops_answered_together_are_those_answered_alone():
    torch.manual_seed(0)
    dino = Dino(VisionTransformer(SHAPE), DinoConfig(**SMALL)).eval()
    wide, narrow = torch.randn(2, 3, 3, 16, 16), torch.randn(3, 3, 3, 8, 8)
    together = dino._answers(dino.student, wide)
    encoder, head = dino.student["encoder"], dino.student["head"]
    alone = torch.stack([head(encoder.forward_features(images)[:, 0]) for images in wide])
    assert together.shape == (2, 3, 12) and torch.allclose(together, alone, atol=1e-5)
    local = dino._answers(dino.student, narrow, (2, 2))
    single = head(encoder.forward_intermediates(narrow[1], [-1], grid_size=(2, 2))[0][:, 0])
    assert local.shape == (3, 3, 12) and torch.allclose(local[1], single, atol=1e-5)


def test_only_the_student_learns_and_the_teacher_follows():
    torch.manual_seed(0)
    dino = Dino(VisionTransformer(SHAPE), DinoConfig(**SMALL, momentum=0.9))
    batch = [torch.randn(2, 4, 3, 16, 16), torch.randn(3, 4, 3, 8, 8)]
    dino.loss(batch, progress=0.0, generator=torch.Generator())["loss"].backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in dino.teacher.parameters())
    assert dino.center.abs().sum() > 0
    student, teacher = dino.student["head"].layers[0].weight, dino.teacher["head"].layers[0].weight
    before = teacher.clone()
    student.data += 1
    dino.after_step(progress=0.0)
    assert torch.allclose(teacher, 0.9 * before + 0.1 * student, atol=1e-6)
    assert dino.result() is dino.teacher["encoder"]


def test_the_last_layer_is_frozen_at_first():
    dino = Dino(VisionTransformer(SHAPE), DinoConfig(**SMALL, frozen=0.1))
    prototypes = dino.student["head"].prototypes
    for progress, is_frozen in ((0.0, True), (0.099, True), (0.1, False)):
        prototypes.grad = torch.ones_like(prototypes)
        dino.before_step(progress=progress)
        assert (prototypes.grad is None) == is_frozen


def test_schedules_begin_and_end_as_published():
    config = DinoConfig(teacher_temperature=(0.04, 0.07), temperature_warmup=0.3)
    assert [teacher_temperature(config, at) for at in (0.0, 0.15, 0.3, 0.9)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert teacher_temperature(DinoConfig(temperature_warmup=0.0), 0.0) == DinoConfig().teacher_temperature[1]
    assert [teacher_momentum(0.996, at) for at in (0.0, 0.5, 1.0)] == pytest.approx([0.996, 0.998, 1.0])


def test_both_ways_to_collapse_show():
    dino = Dino(VisionTransformer(SHAPE), DinoConfig(**SMALL))
    batch = [torch.randn(1, 1, 3, 16, 16).expand(2, 4, -1, -1, -1)]
    told = dino.loss(batch, progress=0.0, generator=torch.Generator())
    assert told["all_bits"].item() == pytest.approx(told["answer_bits"].item(), rel=1e-4)  # all answers alike
    dino.teacher["head"].prototypes.data = torch.ones(12, 8)
    dino.center.zero_()
    told = dino.loss(batch, progress=0.0, generator=torch.Generator())
    assert told["answer_bits"].item() == pytest.approx(math.log2(12), rel=1e-4)  # each one uniform


def test_local_crops_are_whole_patches():
    with pytest.raises(InputError, match="local_size \\(10\\) must be a multiple of the patch size \\(4\\)"):
        Dino(VisionTransformer(SHAPE), DinoConfig(**SMALL | {"local_size": 10}))

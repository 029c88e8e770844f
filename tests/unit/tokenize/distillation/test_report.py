import numpy as np
import torch
from torch.nn import functional as F

from beit.tests.distillation import settings
from beit.tokenize.distillation.data import CHANGED_IMAGES, IMAGES
from beit.tokenize.distillation.model import DistillationModel, teacher_cosine
from beit.tokenize.distillation.report import distillation_metrics, word_colours, words_sheet

CPU = torch.device("cpu")


class PixelTeacher:
    name, img_size, grid_size, dim, fingerprint = "pixels", 16, 4, 3, "0" * 64

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(images.float(), 4)


def views(count: int = 5) -> dict[str, torch.Tensor]:
    images = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return {IMAGES: images, CHANGED_IMAGES: images.flip(3)}


def model() -> DistillationModel:
    torch.manual_seed(0)
    return DistillationModel(settings().model, decoder_depth=3, teacher_dim=3).eval()


def test_metrics_are_what_they_say() -> None:
    network, teacher = model(), PixelTeacher()
    found = distillation_metrics(network, teacher, views(), CPU)
    words = network.vqkd.pixels_to_ids(views()[IMAGES])
    changed = network.vqkd.pixels_to_ids(views()[CHANGED_IMAGES]).flip(2)
    assert found["agreement"] == float((words == changed).double().mean())
    assert found["words_used"] == len(words.unique())
    features = network(views()[IMAGES]).features.detach()
    targets = teacher.features(views()[IMAGES])
    cosines = (features * targets).sum(1) / (features.norm(dim=1) * targets.norm(dim=1))
    assert abs(found["teacher_cosine"] - float(cosines.mean())) < 1e-6
    assert abs(float(teacher_cosine(features, targets)) - float(cosines.mean())) < 1e-6


def test_features_are_compared_without_what_all_patches_share() -> None:
    network = model()
    features = torch.randn(6, 3, 4, 4) * torch.tensor([1.0, 5.0, 0.0])[:, None, None] + 100.0
    assert torch.equal(network.standardised(features), features)
    network.measure(features)
    found = network.standardised(features)
    assert found.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(found.std(dim=(0, 2, 3)), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3)


def test_near_words_have_near_colours_and_any_codebook_has_some() -> None:
    codebook = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    codebook[1] = F.normalize(codebook[0] + 1e-4, dim=0)
    colours = word_colours(codebook).astype(int)
    assert colours.shape == (50, 3) and np.abs(colours[0] - colours[1]).max() < 15
    assert word_colours(F.normalize(torch.randn(4, 2), dim=1)).shape == (4, 3)


def test_the_sheet_shows_every_view() -> None:
    sheet = words_sheet(model(), views(), CPU)
    assert sheet.mode == "RGB" and sheet.height > 3 * 160

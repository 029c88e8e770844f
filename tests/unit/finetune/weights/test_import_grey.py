"""Weights for grey images: as they are, or made of those for RGB without changing what is said of grey images."""

import pytest
import torch
from click.testing import CliRunner

from beit.cli import beit
from beit.common.encoder import load_encoder
from beit.common.errors import InputError
from beit.common.vit.config import Normalization
from beit.common.vit.description import read_encoder_config
from beit.common.vit.transform import normalize_images
from beit.finetune.artifact import load_classifier
from beit.finetune.weights.export.exporter import export_model
from beit.finetune.weights.import_findings import NORMALIZATIONS
from beit.finetune.weights.import_model import import_encoder
from beit.tests.foreign_weights import HEADS, PATCH, SIDE, timm_vit

IMAGENET = NORMALIZATIONS["imagenet"]


def imported(tmp_path, value, name="encoder", **options):
    torch.save(value, tmp_path / "w.pth")
    return import_encoder(tmp_path / "w.pth", tmp_path / name, num_heads=HEADS, **options)


def grey_images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 1, SIDE * PATCH, SIDE * PATCH), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("normalization", ["imagenet", "inception"])
def test_a_grey_model_of_rgb_weights_has_the_logits_of_the_grey_image_shown_as_rgb(tmp_path, normalization):
    weights = timm_vit(head=3)
    imported(tmp_path, weights, "rgb", normalization=normalization)
    imported(tmp_path, weights, "grey", normalization=normalization, in_chans=1)
    (colour, told), (grey, described) = load_classifier(tmp_path / "rgb"), load_classifier(tmp_path / "grey")
    assert described.architecture.in_chans == 1 and len(described.normalization.mean) == 1
    shown = grey_images()
    with torch.inference_mode():
        expected = colour(normalize_images(shown.expand(-1, 3, -1, -1).clone(), *told.normalization))
        found = grey(normalize_images(shown, *described.normalization))
    assert expected.std() > 1e-2 and torch.allclose(found, expected, atol=1e-5)


def test_its_summary_and_provenance_say_that_kernels_were_summed(tmp_path):
    result = imported(tmp_path, timm_vit(), in_chans=1)
    (line,) = (line for line in result.summary.splitlines() if line.startswith("channels:"))
    assert "kernels of 3 summed" in line and "0.459" in line
    assert "channels" in read_encoder_config(tmp_path / "encoder").provenance["findings"]
    plain = imported(tmp_path, timm_vit(), "plain")
    assert "channels:" not in plain.summary
    assert "channels" not in read_encoder_config(tmp_path / "plain").provenance["findings"]


def test_weights_of_one_channel_stay_as_they_are(tmp_path):
    weights = timm_vit(channels=1)
    result = imported(tmp_path, weights, normalization="imagenet")
    encoder = load_encoder(tmp_path / "encoder")
    assert encoder.config.in_chans == 1
    assert torch.equal(encoder.patch_embed.proj.weight, weights["patch_embed.proj.weight"])
    assert result.config.normalization == Normalization((0.458971,), (0.225609,))
    assert encoder.transform.normalize(grey_images()).shape == (2, 1, SIDE * PATCH, SIDE * PATCH)


def test_a_grey_model_cannot_be_made_one_for_rgb(tmp_path):
    with pytest.raises(InputError, match="for grey images .*leave --in-chans 3 out"):
        imported(tmp_path, timm_vit(channels=1), in_chans=3)
    assert not (tmp_path / "encoder").exists()


def test_the_command_takes_in_chans(tmp_path):
    torch.save(timm_vit(), tmp_path / "w.pth")
    args = ["import", str(tmp_path / "w.pth"), str(tmp_path / "e"), "--num-heads", str(HEADS)]
    wrong = CliRunner().invoke(beit, [*args, "--in-chans", "2"])
    assert wrong.exit_code == 2 and not (tmp_path / "e").exists()
    result = CliRunner().invoke(beit, [*args, "--in-chans", "1"])
    assert result.exit_code == 0, result.output
    assert read_encoder_config(tmp_path / "e").architecture.in_chans == 1


@pytest.mark.parametrize("target", ["timm", "official", "huggingface"])
def test_an_export_of_a_grey_model_comes_back_as_it_was(tmp_path, target):
    imported(tmp_path, timm_vit(head=3), in_chans=1)
    export_model(tmp_path / "encoder", tmp_path / "out", module=target)
    import_encoder(tmp_path / "out", tmp_path / "again")
    first, second = (read_encoder_config(tmp_path / name) for name in ("encoder", "again"))
    assert second.architecture.in_chans == 1 and second.normalization == first.normalization
    (model, _), (again, _) = (load_classifier(tmp_path / name) for name in ("encoder", "again"))
    images = normalize_images(grey_images(), *first.normalization)
    with torch.inference_mode():
        assert torch.allclose(model(images), again(images), atol=1e-5)

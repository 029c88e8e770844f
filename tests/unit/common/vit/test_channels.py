"""Pixels and models of other channels: grey thrice, colours as luma, kernels of three as one."""

import numpy as np
import pytest
import torch
from PIL import Image

from beit.common.errors import InputError
from beit.common.vit.adapt import adapt_state, check_adaptable
from beit.common.vit.channels import describe_fit, fit_channels, grey_projection, luma
from beit.common.vit.config import Normalization, ViTConfig, for_channels, require_channels
from beit.common.vit.transform import normalize_images
from beit.common.vit.vit import VisionTransformer

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ODD = Normalization((0.1, 0.5, 0.9), (0.7, 0.2, 0.4))
SHAPE = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, drop_path=0.0)


def pixels(channels, seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 16, 16), generator=generator, dtype=torch.uint8)


def vit(channels, seed=0):
    torch.manual_seed(seed)
    model = VisionTransformer(ViTConfig(in_chans=channels, **SHAPE)).eval()
    for parameter in model.parameters():  # so that biases and tables count, too
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_luma_is_that_of_pillow_for_every_colour_of_a_sample():
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = luma(torch.from_numpy(colours).permute(2, 0, 1)[None])
    assert np.array_equal(found[0, 0].numpy(), np.asarray(Image.fromarray(colours).convert("L")))


def test_grey_stands_in_all_channels_and_its_luma_is_itself():
    grey = pixels(1)
    assert fit_channels(grey, 1) is grey
    thrice = fit_channels(grey, 3)
    assert thrice.shape == (3, 3, 16, 16) and all(torch.equal(thrice[:, i], grey[:, 0]) for i in range(3))
    assert torch.equal(fit_channels(thrice, 1), grey)


def test_all_values_of_grey_survive_the_way_there_and_back():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(luma(ramp.expand(-1, 3, -1, -1)), ramp)


@pytest.mark.parametrize(("found", "wanted"), [(2, 3), (4, 3), (3, 4), (13, 1)])
def test_other_numbers_of_channels_are_refused(found, wanted):
    with pytest.raises(ValueError, match=f"{found} channels cannot become {wanted}"):
        fit_channels(pixels(found), wanted)


def test_the_line_about_a_mismatch_says_what_is_done():
    assert describe_fit(1, 1) is None and describe_fit(3, 3) is None
    assert (
        describe_fit(1, 3) == "the images are grey (one channel), and the model sees three: grey stands in all of them"
    )
    assert "luma (ITU-R 601)" in describe_fit(3, 1, what="the encoder")


def test_normalisation_fits_pixels_to_the_channels_of_the_mean():
    grey, mean, std = pixels(1), (0.4,), (0.2,)
    assert normalize_images(grey, mean, std).shape == (3, 1, 16, 16)
    assert torch.equal(normalize_images(grey.expand(-1, 3, -1, -1), mean, std), normalize_images(grey, mean, std))
    assert torch.equal(
        normalize_images(grey, *IMAGENET), normalize_images(grey.expand(-1, 3, -1, -1).clone(), *IMAGENET)
    )
    assert torch.allclose(normalize_images(pixels(3), mean, std), (luma(pixels(3)) / 255 - 0.4) / 0.2, atol=1e-6)


def test_statistics_of_grey_are_averages_by_luma():
    assert for_channels(IMAGENET, 3) is IMAGENET
    (mean,), (std,) = for_channels(IMAGENET, 1)
    assert mean == pytest.approx(0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406, abs=1e-6)
    assert std == pytest.approx(0.299 * 0.229 + 0.587 * 0.224 + 0.114 * 0.225, abs=1e-6)
    assert for_channels(Normalization((0.5,), (0.2,)), 3) == ((0.5,) * 3, (0.2,) * 3)
    half = Normalization((0.5,) * 3, (0.5,) * 3)
    assert for_channels(half, 1) == ((0.5,), (0.5,))


@pytest.mark.parametrize("mean, std", [((0.5, 0.5), None), (None, (0.1,) * 4), ((0.5,), (0.5,) * 3)])
def test_a_mean_or_std_of_other_channels_is_refused(mean, std):
    with pytest.raises(InputError, match=r"data\.(mean|std)"):
        require_channels("data", mean, std)


HALF = Normalization((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("scale", [IMAGENET, ODD, HALF], ids=["imagenet", "odd", "half"])
def test_a_grey_network_made_of_an_rgb_one_says_the_same_of_grey_images(scale):
    colour, grey = vit(3), vit(1, seed=1)
    state = adapt_state(colour.state_dict(), colour.config, grey.config, pixels=scale)
    grey.load_state_dict(state)
    shown = pixels(1)
    with torch.inference_mode():
        expected = colour.forward_features(normalize_images(shown.expand(-1, 3, -1, -1), *scale))
        found = grey.forward_features(normalize_images(shown, *for_channels(scale, 1)))
    assert torch.allclose(found, expected, atol=1e-5)


def test_where_channels_are_normalised_alike_kernels_are_summed_and_the_bias_stays():
    weight, bias = torch.randn(8, 3, 4, 4), torch.randn(8)
    summed, same, scale = grey_projection(weight, bias, Normalization((0.5,) * 3, (0.5,) * 3))
    assert torch.allclose(summed, weight.sum(1, keepdim=True), atol=1e-6) and torch.equal(same, bias)
    assert scale == ((0.5,), (0.5,)) and summed.dtype == torch.float32


def test_an_rgb_encoder_becomes_grey_and_not_the_other_way():
    colour, grey = (ViTConfig(in_chans=channels, **SHAPE) for channels in (3, 1))
    check_adaptable(colour, grey)
    with pytest.raises(InputError, match=r"model\.in_chans \(3\) must be 1"):
        check_adaptable(grey, colour)
    with pytest.raises(ValueError, match="give pixels"):
        adapt_state(vit(3).state_dict(), colour, grey)


@pytest.mark.parametrize(("model", "images"), [(1, 3), (3, 1)])
def test_a_network_refuses_other_channels_by_name(model, images):
    with pytest.raises(ValueError, match=f"must have {model} channels, the model's in_chans"):
        vit(model).forward_features(torch.zeros(1, images, 16, 16))


def test_a_network_of_three_channels_has_the_same_parameters_as_ever():
    assert ViTConfig(**SHAPE) == ViTConfig(in_chans=3, **SHAPE)
    assert vit(3).state_dict()["patch_embed.proj.weight"].shape == (24, 3, 4, 4)
    assert vit(1).state_dict()["patch_embed.proj.weight"].shape == (24, 1, 4, 4)

import math

import numpy as np
import pytest
import torch
from PIL import Image

from beit.common.errors import InputError
from beit.common.tokenizers.dvae import DiscreteVAE, gumbel_softmax, kl_to_uniform, scale_pixels, usage_kl
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.common.vit.channels import luma


def tiny(**changes: object) -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(DiscreteVAEConfig(**{"vocab_size": 32, "width": 16, "num_blocks": 2, "code_dim": 8} | changes))


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("downsampling", [4, 8, 16])
def test_one_word_per_square_and_back(downsampling: int) -> None:
    model = tiny(downsampling=downsampling)
    images = pixels(2, 3, 48, 32)
    token_ids = model.pixels_to_ids(images)
    assert token_ids.shape == (2, 48 // downsampling, 32 // downsampling)
    assert token_ids.dtype == torch.int64 and 0 <= token_ids.min() and token_ids.max() < 32
    decoded = model.ids_to_pixels(token_ids)
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8


def test_112_px_give_14_by_14_words() -> None:
    assert tiny().pixels_to_ids(pixels(1, 3, 112, 112)).shape == (1, 14, 14)


def test_words_are_the_argmax_of_the_logits_whatever_the_scale() -> None:
    model = tiny()
    images = pixels(2, 3, 32, 32)
    expected = model.pixels_to_ids(images)
    with torch.no_grad():
        assert torch.equal(model.logits(model.encode_features(scale_pixels(images))).argmax(-1), expected)
        model.log_scale.add_(1.0)
        assert torch.equal(model.pixels_to_ids(images), expected)


def test_decoding_weights_that_are_certain_is_decoding_words() -> None:
    model = tiny()
    token_ids = torch.randint(0, 32, (1, 2, 3))
    weights = torch.nn.functional.one_hot(token_ids, 32).float()
    images = model.decode_weights(weights)
    assert torch.equal(((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8), model.ids_to_pixels(token_ids))


def test_logits_stay_float32_under_autocast() -> None:
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.logits(model.encode_features(scale_pixels(pixels(1, 3, 16, 16))))
    assert logits.dtype == torch.float32


def test_bfloat16_agrees_on_most_words() -> None:
    model = tiny()
    images = pixels(4, 3, 64, 64)
    exact = model.pixels_to_ids(images)
    model.use_dtype(torch.bfloat16)
    assert (model.pixels_to_ids(images) == exact).float().mean() > 0.8


def grey(**changes: object) -> DiscreteVAE:
    return tiny(channels=1, **changes)  # type: ignore[arg-type]


def test_luma_is_pillows() -> None:
    images = pixels(3, 3, 40, 30)
    for colours, expected in zip(images.permute(0, 2, 3, 1).numpy(), luma(images), strict=True):
        assert np.array_equal(np.asarray(Image.fromarray(colours).convert("L")), expected[0].numpy())


@pytest.mark.parametrize("reconstruction", ["mse", "logit_laplace"])
def test_grey_network_sees_luma_and_gives_rgb(reconstruction: str) -> None:
    model = grey(reconstruction=reconstruction)
    images = pixels(2, 3, 32, 32)
    token_ids = model.pixels_to_ids(images)
    assert torch.equal(token_ids, model.pixels_to_ids(luma(images).expand(-1, 3, -1, -1)))
    decoded = model.ids_to_pixels(token_ids)
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8
    assert torch.equal(decoded[:, 0], decoded[:, 1]) and torch.equal(decoded[:, 0], decoded[:, 2])


@pytest.mark.parametrize("downsampling", [4, 8, 16])
def test_logit_laplace_head_has_two_numbers_per_channel(downsampling: int) -> None:
    model = tiny(downsampling=downsampling, reconstruction="logit_laplace")
    statistics = model.decode_features(model.encode_features(model.see(pixels(1, 3, 32, 48))))
    assert statistics.shape == (1, 6, 32, 48)
    images = model.expected_images(statistics)
    assert images.shape == (1, 3, 32, 48) and images.abs().max() <= 1.0


def test_gumbel_softmax_draws_from_the_distribution() -> None:
    probability = torch.tensor([0.5, 0.3, 0.2])
    generator = torch.Generator().manual_seed(0)
    draws = gumbel_softmax(probability.log().expand(40_000, 3), temperature=0.5, generator=generator)
    assert torch.allclose(draws.sum(-1), torch.ones(40_000))
    # The largest entry is a draw from the categorical distribution at any temperature.
    share = torch.bincount(draws.argmax(-1), minlength=3) / 40_000
    assert torch.allclose(share, probability, atol=0.01)


def test_gumbel_softmax_follows_its_formula() -> None:
    logits = torch.randn(5, 7)
    draw = gumbel_softmax(logits, temperature=0.7, generator=torch.Generator().manual_seed(3))
    exponential = torch.empty(5, 7).exponential_(generator=torch.Generator().manual_seed(3))
    expected = torch.softmax((logits - exponential.log()) / 0.7, dim=-1)
    assert torch.allclose(draw, expected, atol=1e-6)


def test_low_temperature_is_nearly_one_word() -> None:
    draws = gumbel_softmax(torch.zeros(1000, 10), temperature=0.01, generator=torch.Generator().manual_seed(0))
    assert draws.amax(-1).mean() > 0.98


def test_kl_to_uniform_is_zero_when_undecided_and_log_v_when_certain() -> None:
    assert kl_to_uniform(torch.zeros(2, 3, 8)).item() == pytest.approx(0, abs=1e-6)
    assert kl_to_uniform(100 * torch.eye(8)).item() == pytest.approx(math.log(8), abs=1e-5)


def test_kl_to_uniform_is_per_position() -> None:
    logits = torch.randn(4, 8)
    probability = logits.softmax(-1)
    expected = (probability * (probability * 8).log()).sum(-1).mean()
    assert kl_to_uniform(logits).item() == pytest.approx(expected.item(), abs=1e-6)
    assert kl_to_uniform(logits.repeat(3, 1)).item() == pytest.approx(expected.item(), abs=1e-6)


def test_usage_kl_sees_collapse_but_not_certainty() -> None:
    everyone_certain_of_another_word = 100 * torch.eye(8)
    everyone_certain_of_the_same_word = 100 * torch.eye(8)[:1].expand(8, 8)
    assert usage_kl(everyone_certain_of_another_word).item() == pytest.approx(0, abs=1e-5)
    assert usage_kl(everyone_certain_of_the_same_word).item() == pytest.approx(math.log(8), abs=1e-5)


def test_default_vocabulary_is_beits() -> None:
    assert DiscreteVAEConfig().vocab_size == 8192


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 70_000}, r"vocab_size \(70000\)"),
        ({"downsampling": 6}, r"downsampling \(6\)"),
        ({"width": 9}, r"width \(9\)"),
        ({"num_blocks": 0}, r"num_blocks \(0\)"),
        ({"code_dim": 1}, r"code_dim \(1\)"),
        ({"channels": 2}, r"channels \(2\)"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiscreteVAEConfig(**change)

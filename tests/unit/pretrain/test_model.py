"""The masked image model: static gather, the loss, and what must hold at initialisation."""

import math
from dataclasses import replace

import pytest
import torch

from beit.common.errors import InputError
from beit.common.vit.config import ModelConfig, ViTConfig, build_vit_config
from beit.pretrain.model import (
    MaskedImageModel,
    MaskedPixelModel,
    MaskedPrediction,
    masked_positions,
    mim_loss,
    patchify,
    pixel_loss,
    pixel_targets,
    unpatchify,
)
from beit.tests.support import predict_all

SMALL = ViTConfig(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, drop_path=0.0)


def build(num_masked=6, config=SMALL, vocab_size=32):
    torch.manual_seed(0)
    return MaskedImageModel(config, vocab_size=vocab_size, num_masked=num_masked)


def disturb(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def masks(*counts):
    mask = torch.zeros(len(counts), 16, dtype=torch.bool)
    for row, count in enumerate(counts):
        mask[row, torch.randperm(16)[:count]] = True
    return mask


def test_positions_list_the_masked_patches_in_order():
    mask = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1]], dtype=torch.bool)
    positions, valid = masked_positions(mask, 2)
    assert positions[0].tolist() == [1, 3]
    assert positions[1, 0].item() == 3
    assert valid.tolist() == [[True, True], [True, False]]


def test_logits_are_those_of_all_patches_at_the_masked_ones():
    model = disturb(build()).eval()
    images, mask = torch.randn(3, 3, 16, 16), masks(6, 4, 1)
    prediction = model(images, mask)
    assert prediction.logits.shape == (3, 6, 32)
    everything = predict_all(model, images, mask)
    assert everything.shape == (3, 16, 32)
    torch.testing.assert_close(prediction.logits[prediction.valid], everything[mask])


@pytest.mark.parametrize("pos_bias", ["shared", "per_block", "none"])
def test_leaving_out_positions_nobody_predicts_from_changes_no_gradient(pos_bias):
    """The last block finishes the masked positions only; here it is compared with finishing all of them."""
    config = replace(SMALL, depth=3, pos_bias=pos_bias, drop_path=0.5)
    model = disturb(build(config=config)).double()
    images, mask, token_ids = torch.randn(3, 3, 16, 16).double(), masks(6, 4, 1), torch.randint(0, 32, (3, 16))
    results = []
    for everywhere in (False, True):
        torch.manual_seed(5)  # of drop path
        model.zero_grad()
        if everywhere:
            hidden = model.forward_features(images, mask)[:, 1:]
            positions, valid = masked_positions(mask, 6)
            taken = hidden.gather(1, positions[..., None].expand(-1, -1, config.embed_dim))
            prediction = MaskedPrediction(model.head(model.norm(taken)), positions, valid)
        else:
            prediction = model(images, mask)
        loss = mim_loss(prediction, token_ids).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-7)  # the loss itself is float32


def test_loss_is_the_mean_over_all_masked_patches_of_the_batch():
    model = disturb(build()).eval()
    images, mask, token_ids = torch.randn(3, 3, 16, 16), masks(6, 4, 1), torch.randint(0, 32, (3, 16))
    result = mim_loss(model(images, mask), token_ids)
    logits, labels = predict_all(model, images, mask)[mask], token_ids[mask]
    torch.testing.assert_close(result.loss, torch.nn.functional.cross_entropy(logits, labels))
    assert result.num_predicted.item() == 11
    assert result.num_correct.item() == (logits.argmax(1) == labels).sum().item()


def test_padding_gets_no_gradient():
    mask, token_ids = masks(2), torch.randint(0, 32, (1, 16))
    positions, valid = masked_positions(mask, 6)
    logits = torch.randn(1, 6, 32, requires_grad=True)
    mim_loss(MaskedPrediction(logits, positions, valid), token_ids).loss.backward()
    assert not logits.grad[0, 2:].any()
    assert logits.grad[0, :2].any()


def test_loss_without_masked_patches_is_zero_and_differentiable():
    result = mim_loss(build()(torch.randn(2, 3, 16, 16), masks(0, 0)), torch.zeros(2, 16, dtype=torch.int64))
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert result.num_predicted.item() == 0


def test_counts_are_detached_and_loss_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        prediction = build()(torch.randn(2, 3, 16, 16), masks(3, 3))
        result = mim_loss(prediction, torch.zeros(2, 16, dtype=torch.int64))
    assert prediction.logits.dtype == torch.bfloat16
    assert result.loss.dtype == torch.float32
    assert not result.num_correct.requires_grad


@pytest.mark.parametrize(("size", "expected"), [("base", 9.055), ("large", 9.069)])
def test_loss_at_initialisation_is_just_above_chance(size, expected):
    # Width and vocabulary decide: the stream is normalised before the head, so one thin block on few patches suffices.
    shape = ModelConfig(size=size, depth=1, mlp_ratio=0.1)
    model = build(4, build_vit_config(shape, img_size=32, patch_size=8), 8192).eval()
    with torch.no_grad():
        prediction = model(torch.randn(2, 3, 32, 32), masks(4, 4))
        losses = -prediction.logits.log_softmax(-1).mean(-1)  # expectation over uniformly random tokens
    assert losses.mean().item() == pytest.approx(expected, abs=0.02)
    assert losses.mean().item() > math.log(8192)


def test_masked_patches_of_an_image_share_their_logits_at_initialisation():
    model = build().eval()
    prediction = model(torch.randn(2, 3, 16, 16), masks(6, 6))
    spread = (prediction.logits - prediction.logits[:, :1]).abs().amax((1, 2))
    assert spread.max() < 1e-6
    assert len(prediction.logits.argmax(-1).unique()) <= 2


def test_all_masked_logits_do_not_depend_on_the_image():
    model = disturb(build(16)).eval()
    mask = masks(16, 16)
    first, second = model(torch.randn(2, 3, 16, 16), mask).logits
    assert torch.equal(first, second)


def test_every_parameter_learns():
    model = disturb(build())
    result = mim_loss(model(torch.randn(2, 3, 16, 16), masks(6, 5)), torch.randint(0, 32, (2, 16)))
    result.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_impossible_models_are_refused():
    with pytest.raises(InputError, match="17.*16"):
        build(17)
    config = ViTConfig(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, use_mask_token=False)
    with pytest.raises(InputError, match="mask_token"):
        build(6, config)


def test_all_tokens_are_predicted_while_some_are_hidden():
    model = disturb(build(16)).eval()
    images, mask, token_ids = torch.randn(2, 3, 16, 16), masks(6, 4), torch.randint(0, 32, (2, 16))
    result = mim_loss(model(images, mask, torch.ones_like(mask)), token_ids)
    logits = predict_all(model, images, mask).flatten(0, 1)
    torch.testing.assert_close(result.loss, torch.nn.functional.cross_entropy(logits, token_ids.flatten()))
    assert result.num_predicted.item() == 32


def test_patches_are_cut_row_by_row_and_put_back():
    images = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).view(2, 3, 16, 16)
    patches = patchify(images, 4)
    assert patches.shape == (2, 16, 48)
    # Patch 6 of a 4 x 4 grid is row 1, column 2; its value 17 is row 1, column 1, channel 2.
    assert patches[1, 6, 17] == images[1, 2, 4 + 1, 8 + 1]
    assert torch.equal(unpatchify(patches, 4), images)


def test_pixel_targets_are_standardised_by_patch_if_asked():
    images = torch.randn(2, 3, 16, 16)
    raw = pixel_targets(images, 4, normalize_patches=False)
    assert torch.equal(raw, patchify(images, 4))
    targets = pixel_targets(images, 4, normalize_patches=True)
    torch.testing.assert_close(targets.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.var(-1), torch.ones(2, 16), atol=1e-4, rtol=0)
    plain = pixel_targets(torch.full((1, 3, 16, 16), 0.3), 4, normalize_patches=True)
    assert plain.abs().max() < 1e-3  # a patch of one colour is no division by zero


def test_pixel_loss_is_the_mean_squared_error_of_the_masked_patches():
    torch.manual_seed(0)
    model = disturb(MaskedPixelModel(SMALL, num_masked=6)).eval()
    images, mask = torch.randn(3, 3, 16, 16), masks(6, 4, 1)
    targets = pixel_targets(images, 4, normalize_patches=True)
    prediction = model(images, mask)
    everything = predict_all(model, images, mask)
    assert everything.shape == (3, 16, 48)
    torch.testing.assert_close(prediction.logits[prediction.valid], everything[mask])
    result = pixel_loss(prediction, targets)
    torch.testing.assert_close(result.loss, torch.nn.functional.mse_loss(everything[mask], targets[mask]))
    assert result.num_predicted.item() == 11


def test_pixel_padding_gets_no_gradient():
    mask = masks(2)
    positions, valid = masked_positions(mask, 6)
    predicted = torch.randn(1, 6, 48, requires_grad=True)
    pixel_loss(MaskedPrediction(predicted, positions, valid), torch.randn(1, 16, 48)).loss.backward()
    assert not predicted.grad[0, 2:].any()
    assert predicted.grad[0, :2].any()


def test_both_models_start_from_the_same_encoder():
    torch.manual_seed(0)
    pixels = MaskedPixelModel(SMALL, num_masked=6).state_dict()
    for name, tensor in build().state_dict().items():
        assert name.startswith("lm_head") or torch.equal(tensor, pixels[name]), name

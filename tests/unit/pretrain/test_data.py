import io

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.rng import CounterRng
from beit.common.storage.samples import Record
from beit.common.views import AugmentConfig, crop_crc, draw_stored_view, draw_view, mean_luma, render_view
from beit.pretrain.data import ViewTransform, check_replay
from beit.pretrain.masking import MaskConfig


def encoded_image(seed=0):
    pixels = CounterRng(seed).raw(40 * 50 * 3).astype(np.uint8).reshape(40, 50, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((100, 80), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def make_record(epoch=0, key="a", data=None):
    data = data or encoded_image()
    image = decode_image(data)
    view = draw_view(CounterRng(0, key), image.width, image.height, AugmentConfig())
    view["crc_crop"] = crop_crc(image, view)
    view["luma"] = mean_luma(render_view(image, view, img_size=64, resample="lanczos"))
    token_ids = np.arange(64, dtype=np.uint16).reshape(8, 8)
    return Record(
        key=key, shard="s", epoch=epoch, view_index=0, image_bytes=data, label=None, view=view, token_ids=token_ids
    )


def transform(**changes):
    settings = {"img_size": 32, "grid_size": 8, "mask": MaskConfig(), "seed": 0, "augment": AugmentConfig()}
    settings |= {"strict": True}
    return ViewTransform(**{**settings, **changes})


def test_a_sample_has_pixels_tokens_and_a_mask():
    record = make_record()
    sample = transform()(record)
    expected = render_view(decode_image(record.image_bytes), record.view, img_size=32)
    assert np.array_equal(sample["images"], expected.transpose(2, 0, 1))
    assert np.array_equal(sample["token_ids"], np.arange(64))
    assert sample["bool_masked_pos"].shape == (64,)
    assert 0 < sample["bool_masked_pos"].sum() <= 24


@pytest.mark.parametrize("changes", [{}, {"strict": False}, {"is_fresh": True, "fixed_masks": True}])
@pytest.mark.parametrize("resample", ["bicubic", "bicubic-torch"])
def test_only_the_view_of_the_model_follows_the_filter(resample, changes):
    record = make_record()
    chosen = transform(resample=resample, token_img_size=64, **changes)
    view = chosen.view_of(record, 100, 80)
    image, sample = decode_image(record.image_bytes), chosen(record)
    expected = render_view(image, view, img_size=32, resample=resample)
    assert np.array_equal(sample["images"], expected.transpose(2, 0, 1))
    if chosen.is_fresh:
        expected = render_view(image, view, img_size=64, resample="lanczos")
        assert np.array_equal(sample["token_views"], expected.transpose(2, 0, 1))


def test_masks_depend_on_seed_epoch_and_sample_only():
    masks = [
        transform(seed=seed)(make_record(epoch, key))["bool_masked_pos"].tobytes()
        for seed, epoch, key in [(0, 0, "a"), (0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    ]
    assert masks[0] == masks[1]
    assert len(set(masks)) == 4


def test_fixed_masks_stay_over_epochs():
    fixed = transform(fixed_masks=True)
    first, second = (fixed(make_record(epoch))["bool_masked_pos"] for epoch in (0, 5))
    assert np.array_equal(first, second)


def test_strict_replay_refuses_other_pixels_of_the_same_size():
    record = make_record()
    record.view["crc_crop"] ^= 1
    with pytest.raises(BadSample, match="crc-mismatch"):
        transform()(record)
    assert transform(strict=False)(record)


def test_tolerant_replay_refuses_another_image():
    record = make_record()
    record.view["luma"] = record.view["luma"] ^ 64
    with pytest.raises(BadSample, match="luma-mismatch"):
        transform(strict=False)(record)


def test_a_store_of_another_decoder_needs_tolerant_replay():
    with pytest.raises(InputError, match="data.replay=tolerant"):
        check_replay("0" * 64, strict=True)
    check_replay("0" * 64, strict=False)


def fresh(**changes):
    return transform(is_fresh=True, token_img_size=16, **changes)


def test_fresh_views_need_no_stored_view_and_depend_on_seed_epoch_and_sample_only():
    def draw(seed, epoch, key):
        record = make_record(epoch, key)
        bare = Record(key=key, shard="s", epoch=epoch, view_index=0, image_bytes=record.image_bytes)
        return fresh(seed=seed)(bare)["images"].tobytes()

    drawn = [draw(*key) for key in [(0, 0, "a"), (0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 4


def test_held_out_images_without_stored_views_are_seen_as_a_store_would_show_them_first():
    record = make_record(epoch=3)
    image = decode_image(record.image_bytes)
    first = draw_stored_view(7, "a", 0, width=image.width, height=image.height, augment=AugmentConfig())
    shown = render_view(image, first, img_size=32)
    for epoch, seed in ((3, 0), (4, 1)):
        bare = Record(key="a", shard="s", epoch=epoch, view_index=0, image_bytes=record.image_bytes)
        sample = fresh(fixed_masks=True, store_seed=7, seed=seed)(bare)
        assert np.array_equal(sample["images"], shown.transpose(2, 0, 1))


def test_the_tokenizer_sees_the_same_crop_as_the_model_with_its_own_filter():
    record = make_record(epoch=3)
    sample = fresh()(record)
    assert sample.keys() == {"images", "token_views", "bool_masked_pos"}
    image = decode_image(record.image_bytes)
    view = draw_view(CounterRng(0, "fresh view", 3, "s/a"), image.width, image.height, AugmentConfig())
    shown = render_view(image, view, img_size=32)
    small = render_view(image, view, img_size=16, resample="lanczos")
    assert np.array_equal(sample["images"], shown.transpose(2, 0, 1))
    assert np.array_equal(sample["token_views"], small.transpose(2, 0, 1))


def test_masks_are_the_same_with_stored_and_with_online_tokens():
    record = make_record(epoch=2)
    assert np.array_equal(transform()(record)["bool_masked_pos"], fresh()(record)["bool_masked_pos"])


def test_held_out_views_stay_over_epochs():
    first, second = (fresh(fixed_masks=True)(make_record(epoch)) for epoch in (0, 4))
    assert np.array_equal(first["token_views"], second["token_views"])


def test_pixels_need_no_tokens():
    assert transform(needs_tokens=False)(make_record()).keys() == {"images", "bool_masked_pos"}


@pytest.mark.parametrize("changes", [{}, {"is_fresh": True, "token_img_size": 16}, {"needs_tokens": False}])
def test_a_blank_sample_has_the_shapes_and_types_of_a_real_one(changes):
    real, blank = transform(**changes)(make_record()), transform(**changes).blank()
    assert {name: (value.shape, value.dtype) for name, value in blank.items()} == {
        name: (value.shape, value.dtype) for name, value in real.items()
    }

"""Pixels of labelled images: keyed by seed, epoch and sample; evaluation as the published resize and crop."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import BadSample
from beit.common.storage.samples import Record
from beit.common.vit.transform import default_crop_pct, resize_and_center_crop
from beit.finetune.augment.augment import EvalTransform, TrainTransform
from beit.finetune.augment.settings import TrainAugmentConfig


def gradient(width, height):
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, (red + green) / 2], axis=-1).astype(np.uint8))


def record(*, epoch=0, key="a", label=3, image=None):
    buffer = io.BytesIO()
    (image or gradient(40, 30)).save(buffer, "PNG")
    return Record(key=key, shard="s", epoch=epoch, view_index=epoch, image_bytes=buffer.getvalue(), label=label)


def train_transform(seed=0, **augment):
    settings = {"rand_augment": "none", "erase_prob": 0.0} | augment
    return TrainTransform(img_size=16, augment=TrainAugmentConfig(**settings), seed=seed)


def test_training_view_is_a_function_of_seed_epoch_and_sample_only():
    images = train_transform()(record())["images"]
    assert np.array_equal(images, train_transform()(record())["images"])
    for other in (
        train_transform(seed=1)(record()),
        train_transform()(record(epoch=1)),
        train_transform()(record(key="b")),
        train_transform()(dataclasses.replace(record(), repeat=1)),
    ):
        assert not np.array_equal(images, other["images"])


def test_training_sample_is_channels_first_uint8_with_its_label():
    sample = train_transform()(record())
    assert sample["images"].shape == (3, 16, 16)
    assert sample["images"].dtype == np.uint8
    assert sample["labels"] == 3
    assert sample["labels"].dtype == np.int64


def test_flip_and_jitter_can_be_switched_off():
    whole = {"scale": (1.0, 1.0), "ratio": (4 / 3, 4 / 3)}
    plain = [train_transform(flip=0.0, **whole)(record(epoch=epoch))["images"] for epoch in range(4)]
    assert all(np.array_equal(plain[0], view) for view in plain)
    flipped = train_transform(flip=1.0, **whole)(record())["images"]
    assert np.array_equal(flipped, plain[0][:, :, ::-1])
    jittered = train_transform(flip=0.0, color_jitter=0.4, **whole)(record())["images"]
    assert not np.array_equal(jittered, plain[0])


def test_half_of_the_views_are_flipped():
    transform = train_transform(scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))
    views = [transform(record(epoch=epoch))["images"] for epoch in range(200)]
    flipped = sum(view[0, 8, 0] > view[0, 8, -1] for view in views)
    assert 75 < flipped < 125


@pytest.mark.parametrize(
    ("img_size", "crop_pct"), [(32, 1.0), (64, 1.0), (96, 0.875), (224, 0.875), (384, 1.0), (512, 1.0)]
)
def test_crop_pct_follows_the_size(img_size, crop_pct):
    assert default_crop_pct(img_size) == crop_pct


def test_evaluation_resizes_the_short_side_and_cuts_the_middle():
    image = gradient(500, 400)
    expected = image.resize((320, 256), Image.Resampling.BICUBIC).crop((48, 16, 272, 240))
    assert np.array_equal(resize_and_center_crop(image, 224, crop_pct=0.875), np.asarray(expected))


def test_evaluation_of_an_image_of_the_right_size_changes_nothing():
    image = gradient(32, 32)
    assert np.array_equal(resize_and_center_crop(image, 32, crop_pct=1.0), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (7, 300)])
def test_evaluation_takes_images_of_any_shape(size):
    assert resize_and_center_crop(Image.new("RGB", size, (9, 8, 7)), 32, crop_pct=0.875).shape == (32, 32, 3)


def test_evaluation_of_an_unlabelled_image_says_so():
    sample = EvalTransform(img_size=16, crop_pct=1.0)(record(label=None))
    assert sample["labels"] == -1


@pytest.mark.parametrize("transform", [train_transform(), EvalTransform(img_size=16, crop_pct=1.0)])
def test_unreadable_image_is_a_bad_sample(transform):
    bad = Record(key="a", shard="s", epoch=0, view_index=0, image_bytes=b"no image", label=0)
    with pytest.raises(BadSample):
        transform(bad)


def test_every_kind_of_change_is_keyed_by_seed_epoch_and_sample():
    settings = {"rand_augment": "rand-m9-mstd0.5-inc1", "erase_prob": 1.0}
    first, again, other = (train_transform(**settings)(record(epoch=epoch)) for epoch in (0, 0, 1))
    assert np.array_equal(first["images"], again["images"])
    assert np.array_equal(first["erase_boxes"], again["erase_boxes"])
    assert not np.array_equal(first["erase_boxes"], other["erase_boxes"])
    plain = train_transform(rand_augment="none", erase_prob=1.0)(record())
    assert np.array_equal(plain["erase_boxes"], first["erase_boxes"])


def test_rand_augment_changes_the_view_that_is_shown_without_it():
    augmented, plain = (
        np.stack([train_transform(rand_augment=policy)(record(epoch=epoch))["images"] for epoch in range(20)])
        for policy in ("rand-m9-mstd0.5-inc1", "none")
    )
    changed = (augmented != plain).any(axis=(1, 2, 3))
    assert 8 <= changed.sum() < 20  # a quarter of the images meets neither of its two operations


def test_what_rotates_into_view_is_the_mean_of_the_normalisation():
    transform = TrainTransform(
        img_size=16,
        augment=TrainAugmentConfig(rand_augment="rand-m10-n8-inc1", erase_prob=0, scale=(1, 1)),
        seed=0,
        fill=(0.0, 1.0, 0.0),
    )
    black = Image.new("RGB", (16, 16), (0, 0, 0))
    shown = np.stack([transform(record(epoch=epoch, image=black))["images"] for epoch in range(40)])
    assert ((shown[:, 1] == 255) & (shown[:, 0] == 0)).any()

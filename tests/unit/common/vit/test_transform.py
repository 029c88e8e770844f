"""The transform beside a model: the pixels and numbers of evaluation, for whatever a user has in hand."""

import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from beit.common.encoder import load_encoder
from beit.common.errors import InputError
from beit.common.images.decode import decode_image
from beit.common.images.decoding import Decoding
from beit.common.images.ranges import ValueRange
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.transform import ImageTransform, normalize_images, resize_and_center_crop
from beit.common.vit.vit import VisionTransformer
from beit.tests.encoders import save_encoder

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TRANSFORM = ImageTransform(32, 0.875, Normalization(MEAN, STD))


def photo(width=70, height=50, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def by_hand(image, img_size=32, crop_pct=0.875):
    """Compute (pixels / 255 - mean) / std of what evaluation shows, in float64."""
    pixels = resize_and_center_crop(image, img_size, crop_pct=crop_pct)
    return ((pixels / 255.0 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)


def test_it_is_resize_crop_and_normalisation():
    found = TRANSFORM(photo())
    assert found.shape == (3, 32, 32) and found.dtype == torch.float32
    assert np.allclose(found.numpy(), by_hand(photo()), atol=1e-5)


@pytest.mark.parametrize("setting", ["dtype", (236.0, 20872.0)])
def test_a_deep_image_and_its_file_give_the_same(tmp_path, setting):
    """The range of a model is for values; what Pillow has opened has them still."""
    transform = replace(TRANSFORM, decoding=Decoding(value_range=ValueRange.parse(setting)))
    values = np.random.default_rng(0).integers(0, 30_000, (50, 70), np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    wanted = transform.pixels(tmp_path / "deep.png")
    opened = Image.open(tmp_path / "deep.png")
    assert opened.mode.startswith("I") and np.array_equal(transform.pixels(opened), wanted)
    assert np.array_equal(transform.pixels(Image.fromarray(values.astype(np.int32))), wanted)
    if setting != "dtype":
        assert np.array_equal(transform.pixels(Image.fromarray(values.astype(np.float32))), wanted)


def test_an_image_of_8_bits_has_its_range_already():
    transform = replace(TRANSFORM, decoding=Decoding(value_range=ValueRange.parse((236.0, 20872.0))))
    assert np.array_equal(transform.pixels(photo()), TRANSFORM.pixels(photo()))


def test_a_deep_image_without_a_window_has_no_range():
    transform = replace(TRANSFORM, decoding=Decoding(value_range=ValueRange.parse("window")))
    with pytest.raises(InputError, match="an image of mode I;16 cannot be read.*it states no window"):
        transform.pixels(Image.fromarray(np.zeros((8, 8), np.uint16)))


def test_a_path_and_its_image_give_the_same(tmp_path):
    photo().save(tmp_path / "photo.jpg")
    path = tmp_path / "photo.jpg"
    decoded = decode_image(path.read_bytes())
    wanted = normalize_images(torch.from_numpy(TRANSFORM.pixels(decoded)).permute(2, 0, 1)[None], MEAN, STD)[0]
    with Image.open(path) as image:
        for given in (path, str(path), image, decoded):
            assert torch.equal(TRANSFORM(given), wanted)


def test_a_batch_is_its_images():
    images = [photo(), photo(33, 90), photo(32, 32)]
    found = TRANSFORM.batch(iter(images))
    assert torch.equal(found, torch.stack([TRANSFORM(image) for image in images]))
    assert found.is_contiguous()
    assert TRANSFORM.batch([]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "LA"])
def test_every_mode_becomes_rgb_as_in_decoding(mode):
    assert TRANSFORM(photo(mode="L").convert("I").convert(mode) if mode == "I;16" else photo(mode=mode)).shape[0] == 3


def test_grey_of_16_bits_is_scaled_not_clipped():
    deep = Image.fromarray(np.full((40, 40), 0x8080, np.uint16))
    assert (TRANSFORM.pixels(deep) == 128).all()


def test_images_are_turned_as_their_exif_data_say():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save(file, "PNG", exif=exif)
    turned = photo().transpose(Image.Transpose.ROTATE_270)
    with Image.open(file) as image:
        assert torch.equal(TRANSFORM(image), TRANSFORM(turned))
        assert torch.equal(TRANSFORM(image.convert("RGB")), TRANSFORM(turned))  # as data sets of torchvision open it


def test_what_is_no_image_is_named_with_the_way_out(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    for path, message in (("missing.jpg", "does not exist"), ("broken.jpg", "cannot be read"), ("", "Is a directory")):
        with pytest.raises(InputError, match=message):
            TRANSFORM(tmp_path / path)
    with pytest.raises(TypeError, match=r"got ndarray; PIL\.Image\.fromarray makes one"):
        TRANSFORM(np.zeros((8, 8, 3), np.uint8))


def test_it_may_be_sent_to_workers():
    assert pickle.loads(pickle.dumps(TRANSFORM)) == TRANSFORM


@pytest.mark.parametrize(
    ("img_size", "stored", "expected"), [(16, None, 1.0), (96, None, 0.875), (96, 0.9, 0.9), (16, 0.9, 0.9)]
)
def test_encoders_carry_theirs(tmp_path, img_size, stored, expected):
    shape = ViTConfig(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1)
    save_encoder(
        tmp_path, VisionTransformer(shape).state_dict(), architecture=shape, mean=MEAN, std=STD, crop_pct=stored
    )
    encoder = load_encoder(tmp_path, img_size=img_size)
    assert encoder.transform == ImageTransform(img_size, expected, Normalization(MEAN, STD))
    assert encoder(encoder.transform(photo())[None]).shape == (1, 1 + (img_size // 8) ** 2, 8)


def test_a_model_that_was_not_loaded_knows_no_normalisation():
    model = VisionTransformer(ViTConfig(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1))
    with pytest.raises(ValueError, match="has no normalization; set it"):
        _ = model.transform
    model.normalization = Normalization(MEAN, STD)
    assert model.transform.crop_pct == 1.0

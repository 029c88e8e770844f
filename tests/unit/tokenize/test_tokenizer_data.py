import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.common.dataset import Record
from beit.common.errors import InputError
from beit.common.rng import CounterRng
from beit.common.synthetic import render_scene
from beit.common.views import AugmentConfig
from beit.tokenize.tokenizer_config import TokenizerDataConfig
from beit.tokenize.tokenizer_data import CropTransform, generate_scenes, open_images

PLAIN = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)


def record(pixels: np.ndarray, epoch: int = 0) -> Record:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return Record(key="a", shard="s", epoch=epoch, view_index=epoch, image_bytes=buffer.getvalue())


def transform(**changes: object) -> CropTransform:
    data = TokenizerDataConfig(view_size=32, crop_size=16, crops_per_image=3)
    return CropTransform(**{"data": data, "augment": PLAIN, "seed": 0} | changes)


def test_pieces_are_cut_from_the_image_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    images = transform()(record(pixels))["images"]
    assert images.shape == (3, 3, 16, 16) and images.dtype == np.uint8
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (16, 16), axis=(0, 1))  # (17, 17, 3, 16, 16)
    for piece in images:
        assert (windows == piece).all(axis=(2, 3, 4)).any()


def test_pieces_depend_on_seed_epoch_and_sample_only() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    first = transform()(record(pixels))["images"]
    assert np.array_equal(first, transform()(record(pixels))["images"])
    assert not np.array_equal(first, transform()(record(pixels, epoch=1))["images"])
    assert not np.array_equal(first, transform(seed=1)(record(pixels))["images"])


def test_synthetic_source_is_generated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path))
    dataset = open_images("synthetic:3", img_size=16, cache_bytes=0)
    assert dataset.shard_sizes.sum() == 3
    folder = Path(generate_scenes("synthetic:3", img_size=16))
    assert [path.name for path in sorted(folder.iterdir())] == ["0000000.png", "0000001.png", "0000002.png"]
    with Image.open(folder / "0000002.png") as image:
        assert np.array_equal(np.asarray(image), render_scene(CounterRng(0, "scene", 2), 16))
    (folder / "0000002.png").unlink()
    assert generate_scenes("synthetic:3", img_size=16) == str(folder)  # taken as it is
    assert not list(tmp_path.glob("*.tmp.*"))


@pytest.mark.parametrize("source", ["synthetic:", "synthetic:0", "synthetic:-3", "synthetic:many", "synthetic:1e3"])
def test_synthetic_needs_a_number(source: str) -> None:
    with pytest.raises(InputError, match="synthetic:N"):
        generate_scenes(source, img_size=32)

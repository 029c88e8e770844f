import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import InputError
from beit.common.images.decode import decode_image
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.rng import CounterRng
from beit.common.storage.samples import Record
from beit.common.views import AugmentConfig
from beit.tests.support import write_images
from beit.tests.tiny_store import tokenize
from beit.tokenize.images import generate_scenes, open_images
from beit.tokenize.synthetic import render_scene
from beit.tokenize.tokenizer_training.config import TokenizerDataConfig
from beit.tokenize.tokenizer_training.data import CropTransform, read_samples, split_images

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


def keys_of(dataset: LabelledDataset) -> set[str]:
    return set(dataset.index.keys())


def split(folder: Path, **changes: float) -> tuple[set[str], set[str]]:
    data = TokenizerDataConfig(**{"num_eval_images": 1} | changes)  # type: ignore[arg-type]
    images = split_images(open_images(str(folder), img_size=32, cache_bytes=0), data, cache_bytes=0)
    return keys_of(images.train), keys_of(images.held_out)


def test_held_out_images_are_fixed_by_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    folder = write_images(tmp_path / "images", 50, size=8)
    train, held_out = split(folder, held_out=0.1)
    assert (len(train), len(held_out)) == (45, 5) and not train & held_out
    assert split(folder, held_out=0.1) == (train, held_out)
    assert held_out < split(folder, held_out=0.2)[1]
    write_images(folder, 60, size=8)  # ten more
    assert len(held_out & split(folder, held_out=0.1)[1]) >= 4


def test_enough_is_held_out_to_measure_on_but_a_fifth_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    folder = write_images(tmp_path / "images", 20, size=8)
    assert len(split(folder, held_out=0.01)[1]) == 1
    assert len(split(folder, held_out=0.01, num_eval_images=3)[1]) == 3
    assert len(split(folder, held_out=0.01, num_eval_images=64)[1]) == 4


def test_tiles_of_one_image_are_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    images = write_images(tmp_path / "images", 20, size=32)
    tokenize(images, tmp_path / "store", tile=16, views=0)
    train, held_out = ({key.partition("~")[0] for key in side} for side in split(tmp_path / "store/images"))
    assert (len(train), len(held_out)) == (19, 1) and not train & held_out


def test_unreadable_images_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    folder = write_images(tmp_path / "images", 3, size=8)
    (folder / "0001.png").write_bytes(b"not a picture")
    dataset = open_images(str(folder), img_size=8, cache_bytes=0)
    read = list(read_samples(dataset, [0, 1, 2], lambda record: np.asarray(decode_image(record.image_bytes))))
    assert len(read) == 2


@pytest.mark.parametrize("source", ["synthetic:", "synthetic:0", "synthetic:-3", "synthetic:many", "synthetic:1e3"])
def test_synthetic_needs_a_number(source: str) -> None:
    with pytest.raises(InputError, match="synthetic:N"):
        generate_scenes(source, img_size=32)

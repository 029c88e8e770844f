"""The value range of an encoder or a model: how it is kept, and which pixels labelled images get by it."""

import json

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.ranges import ValueRange
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.sources.config import SourceConfig
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig, encoder_config_to_json, read_encoder_config
from beit.common.vit.transform import ImageTransform
from beit.finetune.config import DataConfig
from beit.finetune.data import open_training_data
from beit.tests.unit.tokenize.test_ranges import PERCENTILES, scan

HALF = Normalization((0.5,) * 3, (0.5,) * 3)
FOUND = Decoding(value_range=ValueRange.parse("percentile:0.5,99.5", (105.0, 1094.0)))


def description(**facts):
    shape = ViTConfig(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    return EncoderConfig(architecture=shape, normalization=HALF, task="pretrain", **facts)


def written(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("decoding", [FOUND, Decoding(value_range=ValueRange.parse((0.0, 4095.0)))])
def test_a_description_keeps_how_images_were_decoded(tmp_path, decoding):
    folder = written(tmp_path / "encoder", encoder_config_to_json(description(decoding=decoding)))
    assert read_encoder_config(folder, need_weights=False).decoding == decoding


def test_a_description_of_usual_images_says_nothing_of_it(tmp_path):
    content = encoder_config_to_json(description())
    assert "decoding" not in content
    assert read_encoder_config(written(tmp_path / "encoder", content), need_weights=False).decoding == USUAL


@pytest.mark.parametrize("decoding", [3, {"range": "x"}, {"lens": 5}, [], None])
def test_a_damaged_description_is_one_line(tmp_path, decoding):
    content = encoder_config_to_json(description()) | {"decoding": decoding}
    with pytest.raises(InputError, match=r"config.json is malformed \(.*does not say how images are decoded"):
        read_encoder_config(written(tmp_path / "encoder", content), need_weights=False)


def labelled(folder, numbers):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in numbers:
            (folder / name / f"{number}.png").write_bytes(scan(number if name == "a" else number + 100))
    return folder


def pixels_of(index):
    dataset = LabelledDataset(index)
    return [np.asarray(dataset.fetch(*index.locate(place), 0).decode_image()) for place in range(len(index))]


def test_percentiles_of_a_training_hold_for_what_it_is_measured_on(tmp_path):
    train, val = labelled(tmp_path / "train", range(4)), labelled(tmp_path / "val", range(7, 9))
    found = open_training_data(str(train), DataConfig(val=str(val)), reading=PERCENTILES)
    assert found.val is not None
    values = found.train.decoding.value_range.found
    assert values == (found.val.decoding.value_range.low, found.val.decoding.value_range.high)
    small = open_training_data(str(train), DataConfig(num_labels=2), reading=PERCENTILES)
    assert small.train.decoding == found.train.decoding


def test_one_image_looks_alike_in_training_and_in_use(tmp_path):
    train = labelled(tmp_path / "train", range(4))
    reading = SourceConfig().after(FOUND, "encoder")
    index = open_training_data(str(train), DataConfig(), reading=reading).train
    transform = ImageTransform(40, 1.0, HALF, index.decoding)
    assert index.decoding.value_range.low == 105
    first = index.ref_at(0).path
    assert np.array_equal(transform.pixels(str(train / first)), pixels_of(index)[0][:, 4:44])

import pytest

from beit.common.errors import InputError
from beit.common.store import open_store
from beit.tests.support import write_images, write_tokenizer
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.rates import measure_tokenizing


def config_for(tmp_path, **settings):
    tokenizer = str(write_tokenizer(tmp_path / "tokenizer"))
    return TokenizeConfig(tokenizer=tokenizer, img_size=16, patch_size=4, threads=1, workers=1, **settings)


def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_a_rate_and_a_store_to_go_on_with(tmp_path):
    images = [path.read_bytes() for path in write_images(tmp_path / "some", 4).iterdir()]
    rate = measure_tokenizing(config_for(tmp_path, views=6), images, folder(tmp_path), seconds=0.5)
    store = open_store(tmp_path / "out/store")
    assert rate.views_per_second > 0 and rate.image_bytes > 0
    assert len(store) >= 4 and 1 <= store.info.views <= 6  # more where few views of four images would say little


def test_one_view_is_measured_as_one(tmp_path):
    images = [path.read_bytes() for path in write_images(tmp_path / "some", 4).iterdir()]
    measure_tokenizing(config_for(tmp_path, views=1), images, folder(tmp_path), seconds=0.1)
    assert open_store(tmp_path / "out/store").info.views == 1


def test_images_that_cannot_be_read_are_no_rate(tmp_path):
    with pytest.raises(InputError, match="no image of the source is usable"):
        measure_tokenizing(config_for(tmp_path, views=2), [b"no image"], folder(tmp_path), seconds=0.1)


def test_without_images_generated_ones_stand_in(tmp_path):
    measure_tokenizing(config_for(tmp_path, views=1), [], folder(tmp_path), seconds=0.1)
    # Copies of them where the processor is quick; how many is no matter of the test.
    assert len(open_store(tmp_path / "out/store")) % 12 == 0

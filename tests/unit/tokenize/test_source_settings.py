"""The settings of a source, from the command's settings to what a reader of the store decodes."""

import io
import json

import pytest
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.sources.config import SourceConfig
from beit.common.sources.index_build import build_index
from beit.common.store import open_store
from beit.tests.tiny_store import encoded_image, tokenize, write_folder, write_members
from beit.tokenize.checking.verify import verify_store

SMALL = SourceConfig(max_megapixels=0.0015)  # 1500 pixels; the images have 1920
LARGE = SourceConfig(max_megapixels=0.002)


@pytest.mark.parametrize("changes", [{}, {"short_side": 32}, {"materialize": True}], ids=["images", "shrunk", "crops"])
def test_larger_images_are_skipped_and_the_store_says_so(tmp_path, changes):
    source = write_folder(tmp_path / "images", 5)
    buffer = io.BytesIO()
    Image.new("RGB", (30, 30)).save(buffer, "PNG")
    for number in range(5, 8):
        (source / f"{number:03d}.png").write_bytes(buffer.getvalue())
    small = tokenize(source, tmp_path / "small", source=SMALL, bad_sample_budget=0.9, **changes)
    assert dict(small.skipped) == {"bomb": 5} and small.num_samples == 3
    large = tokenize(source, tmp_path / "large", source=LARGE, **changes)
    assert not large.skipped and large.num_samples == 8
    info = open_store(tmp_path / "large").info
    assert info.source.max_megapixels == 0.002
    with pytest.raises(InputError, match=r"source.max_megapixels \(64.0\) differs from that of store"):
        tokenize(source, tmp_path / "large", **changes)


def test_a_store_is_read_as_it_was_written(tmp_path, monkeypatch):
    tokenize(write_folder(tmp_path / "images", 3), tmp_path / "store", source=LARGE)
    store = open_store(tmp_path / "store")
    assert store.read_record(0, 0, 0).decoding.max_pixels == 2000
    assert store[0]["image"].size == (48, 40)
    assert not verify_store(str(tmp_path / "store")).problems
    document = tmp_path / "store/store.json"
    document.write_text(document.read_text().replace("0.002", "0.001"))
    with pytest.raises(BadSample, match="bomb"):
        open_store(tmp_path / "store").read_record(0, 0, 0).decode_image()


def test_old_stores_have_no_such_settings(tmp_path):
    tokenize(write_folder(tmp_path / "images", 3), tmp_path / "store")
    before = open_store(tmp_path / "store").info
    document = tmp_path / "store/store.json"
    content = json.loads(document.read_text())
    del content["source"]["max_megapixels"], content["source"]["image_member"]
    document.write_text(json.dumps(content))
    after = open_store(tmp_path / "store").info
    assert after == before and after.settings_sha256() == before.settings_sha256()
    assert "source.max_megapixels" not in before.settings()


def test_an_index_carries_the_limit_to_its_records_and_in_its_identity(tmp_path):
    source = write_folder(tmp_path / "images", 2)
    plain, small, large = (
        build_index(source, tmp_path / "cache", settings=settings) for settings in (None, SMALL, LARGE)
    )
    assert len({plain.index_sha256, small.index_sha256, large.index_sha256}) == 3
    assert plain.index_sha256 == build_index(source, tmp_path / "cache", settings=SourceConfig()).index_sha256
    assert LabelledDataset(large).fetch(0, 0, 0).decode_image().size == (48, 40)
    with pytest.raises(BadSample, match="bomb"):
        LabelledDataset(small).fetch(0, 0, 0).decode_image()


@pytest.mark.parametrize("changes", [{}, {"short_side": 32}], ids=["referenced", "packed"])
def test_the_chosen_member_is_tokenised(tmp_path, changes):
    members = {}
    for number in range(6):
        members[f"{number}.depth.jpg"] = encoded_image(number + 100)
        members[f"{number}.rgb.jpg"] = encoded_image(number)
    write_members(tmp_path / "pairs.tar", members)
    write_members(tmp_path / "alone.tar", {f"{number}.jpg": encoded_image(number) for number in range(6)})
    chosen = SourceConfig(image_member="rgb.jpg")
    assert tokenize(tmp_path / "pairs.tar", tmp_path / "pairs", source=chosen, **changes).num_samples == 6
    tokenize(tmp_path / "alone.tar", tmp_path / "alone", **changes)
    pairs, alone = open_store(tmp_path / "pairs"), open_store(tmp_path / "alone")
    assert pairs.info.source.image_member == "rgb.jpg"
    for number in range(6):
        assert (pairs[number]["token_ids"] == alone[number]["token_ids"]).all()
    assert not verify_store(str(tmp_path / "pairs")).problems

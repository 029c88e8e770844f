"""Stores of images as science and phones write them."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from beit.common.images.decode import decode_image
from beit.common.images.decoding import Decoding
from beit.common.store import open_store
from beit.tests.science_files import dicom, noise, one_of_each, smooth, tiff
from beit.tests.tiny_store import tokenize, tree_bytes
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.packing.members import shrink

EACH = one_of_each()


def write_images(folder, images):
    folder.mkdir()
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return folder


def stored_images(store):
    found = {}
    with tarfile.open(store / "images/000000-files.tar") as tar:
        data = {member.name: tar.extractfile(member).read() for member in tar}
    for name, document in data.items():
        if name.endswith(".json"):
            stem = name.removesuffix(".json")
            (image,) = (other for other in data if other.startswith(f"{stem}.") and other != name)
            found[json.loads(document)["path"]] = (image.rpartition(".")[2], data[image])
    return found


def test_a_store_keeps_each_format_as_it_is_and_shows_the_same_pixels(tmp_path):
    images = {f"a{number}.{suffix}": data for number, (suffix, data) in enumerate(EACH.items()) if suffix != "npy"}
    source = write_images(tmp_path / "images", images | {"b.jpg": EACH["tif"]})
    tokenize(source, tmp_path / "store", shard_size=20)
    found = stored_images(tmp_path / "store")
    assert {path: suffix for path, (suffix, _) in found.items()} == {
        **{path: path.rpartition(".")[2] for path in images},
        "b.jpg": "tif",
    }
    assert all(found[path][1] == data for path, data in images.items() if not path.endswith("dcm"))
    verify_store(tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert len(store) == len(images) + 1
    for row in range(len(store)):
        assert store[row]["image"].mode == "RGB"


def test_arrays_of_a_folder_are_packed_and_found_again(tmp_path):
    source = write_images(tmp_path / "images", {"a.npy": EACH["npy"]})
    tokenize(source, tmp_path / "store")
    assert np.array_equal(np.asarray(open_store(tmp_path / "store")[0]["image"]), smooth())


def test_a_store_tells_of_no_patient(tmp_path, caplog):
    def name(dataset):
        dataset.PatientName, dataset.PatientID, dataset.InstitutionName = "Doe^Jane", "4711-0815", "Saint Nowhere"

    data = dicom(name)
    source = write_images(tmp_path / "images", {"a.dcm": data, "broken.dcm": data[:-500], "plan.dcm": data[:900]})
    tokenize(source, tmp_path / "store", bad_sample_budget=0.9)
    written = b"".join(tree_bytes(tmp_path / "store").values()) + caplog.text.encode()
    assert b"Doe" in data and not any(word in written for word in (b"Doe", b"Jane", b"4711-0815", b"Nowhere"))
    assert len(open_store(tmp_path / "store")) == 1


@pytest.mark.parametrize("options", [{"short_side": 24}, {"materialize": True}])
def test_what_is_encoded_again_is_a_jpeg_of_8_bits(tmp_path, options):
    source = write_images(tmp_path / "images", {"a.tif": tiff(noise() & 0xFF00), "b.dcm": EACH["dcm"]})
    tokenize(source, tmp_path / "store", **options)
    with tarfile.open(tmp_path / "store/images/000000-files.tar") as tar:
        images = [tar.extractfile(member).read() for member in tar if not member.name.endswith("json")]
    assert images and all(Image.open(io.BytesIO(data)).format == "JPEG" for data in images)
    assert open_store(tmp_path / "store").info.decoding == Decoding()


def test_shrinking_leaves_what_is_small_as_it_is_but_for_the_patient(tmp_path):
    assert shrink(EACH["tif"], 500, jpeg_quality=90) == EACH["tif"]
    source = write_images(tmp_path / "images", {"b.dcm": dicom(lambda d: setattr(d, "PatientName", "Doe^Jane"))})
    tokenize(source, tmp_path / "store", short_side=500)
    ((suffix, data),) = stored_images(tmp_path / "store").values()
    assert suffix == "dcm" and b"Doe" not in data
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(decode_image(dicom())))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images import formats
from beit.common.images.decode import decode_image, size_of_image
from beit.common.images.decoding import Decoding
from beit.common.images.formats import FORMATS, IMAGE_SUFFIXES, format_of, is_array_path, is_image_path, left_out
from beit.common.reading.bad_samples import BadSampleLog, BadSampleReport
from beit.common.sources.opening import open_source
from beit.tests.science_files import HEIGHT, WIDTH, noise, npy, one_of_each, pillow, smooth, tiff
from beit.tests.tiny_store import encoded_image, write_members

EACH = one_of_each()


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(formats, "_is_there", lambda libraries: not libraries)


def images_of(source):
    found = []
    for shard in source.shards:
        with shard.open() as reader:
            found += [reader.read(ref) for ref in shard.refs()]
    return found


@pytest.mark.parametrize("suffix", EACH)
def test_the_content_decides_and_the_decoder_gives_rgb(suffix):
    image = decode_image(EACH[suffix], Decoding())
    assert image.mode == "RGB" and size_of_image(EACH[suffix]) == (image.size, None)
    form = format_of(EACH[suffix])
    assert suffix in form.suffixes and form.is_installed
    if suffix not in ("dcm", "heic", "avif"):
        assert np.array_equal(np.asarray(image), smooth())
    elif suffix != "dcm":
        assert np.abs(np.asarray(image).astype(int) - smooth()).mean() < 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_what_pillow_reads_is_left_to_it(suffix):
    assert format_of(encoded_image(0, suffix)) is None


def test_every_suffix_belongs_to_one_format_and_arrays_are_no_images_by_name():
    listed = [suffix for form in FORMATS for suffix in form.suffixes]
    assert len(listed) == len(set(listed)) and IMAGE_SUFFIXES[:4] == ("jpg", "jpeg", "png", "webp")
    assert is_image_path("a/b.TIFF") and not is_image_path("a/b.npy") and is_array_path("a/b.NPY")


def test_pillow_opens_what_it_opened_before():
    Image.init()
    before = dict(Image.OPEN)
    for data in EACH.values():
        decode_image(data, Decoding())
    assert before == Image.OPEN


def test_avif_is_turned_as_its_file_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(smooth())
    found = decode_image(pillow(image, "AVIF", quality=100, subsampling="4:4:4", exif=exif), Decoding())
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.asarray(found).shape == expected.shape and np.abs(np.asarray(found) - expected).max() < 12


def test_12_bits_in_a_16_bit_png_are_those_of_a_tiff():
    values = noise() >> 4
    expected = ((values.astype(int) + 128) // 257).astype(np.uint8)
    for data in (pillow(Image.fromarray(values), "PNG"), tiff(values)):
        assert np.array_equal(np.asarray(decode_image(data, Decoding()))[..., 0], expected)
    known = tiff(values, bitspersample=12)
    assert np.array_equal(
        np.asarray(decode_image(known, Decoding()))[..., 0], (values * (255 / 4095) + 0.5).astype(np.uint8)
    )


@pytest.mark.parametrize("suffix", EACH)
def test_a_missing_library_is_named(suffix, nothing_installed):
    form = format_of(EACH[suffix])
    if not form.libraries:
        assert decode_image(EACH[suffix], Decoding()).mode == "RGB"
        return
    with pytest.raises(BadSample, match=f"needs-{form.suffixes[0]}: {form.name} images are read after pip install"):
        decode_image(EACH[suffix], Decoding())
    assert size_of_image(EACH[suffix]) is None


def test_the_words_for_what_is_left_out(nothing_installed):
    assert left_out(["heic"] * 8 + ["jpg"]) == "8 .heic left out (pip install 'beit[heic]')"
    words = left_out(["tif", "tif", "rgb.dcm", "avif"])
    assert words.startswith("2 .tif, 1 .rgb.dcm, 1 .avif left out (pip install 'beit[dicom]'; pip install 'beit[tiff]'")
    assert "pip install --upgrade 'pillow>=11.3'" in words
    assert left_out(["jpg", "npy"]) == ""


def test_folders_say_what_they_leave_out(tmp_path, nothing_installed, caplog):
    for number in range(3):
        (tmp_path / f"{number}.heic").write_bytes(EACH["heic"])
    with pytest.raises(InputError, match=r"holds no images that can be read here: 3 .heic left out \(pip install 'bei"):
        open_source(tmp_path)
    (tmp_path / "a.jpg").write_bytes(encoded_image(0))
    assert len(images_of(open_source(tmp_path))) == 1
    assert f"{tmp_path}: 3 .heic left out (pip install 'beit[heic]')" in caplog.text
    assert "other files" not in caplog.text


def test_lists_say_what_they_leave_out(tmp_path, nothing_installed, caplog):
    (tmp_path / "a.jpg").write_bytes(encoded_image(0))
    (tmp_path / "b.tif").write_bytes(EACH["tif"])
    (tmp_path / "list.csv").write_text("path,label\nb,0\na.jpg,1\n")
    source = open_source(tmp_path / "list.csv")
    assert [ref.label for ref in source.shards[0].refs()] == [1]
    assert "1 .tif left out (pip install 'beit[tiff]')" in caplog.text


def test_tars_say_what_they_leave_out(tmp_path, nothing_installed, caplog):
    members = {"a.dcm": EACH["dcm"], "b.jxl": EACH["jxl"]}
    path = write_members(tmp_path / "only.tar", members)
    with pytest.raises(
        InputError, match=r"can be read here: 1 .dcm, 1 .jxl left out \(pip install 'beit\[dicom\]'; pip"
    ):
        open_source(path).shards[0].refs()
    source = open_source(write_members(tmp_path / "mixed.tar", {**members, "b.jpg": encoded_image(0), "c.cls": b"1"}))
    assert [ref.path for ref in source.shards[0].refs()] == ["b.jpg"]
    assert "1 .dcm left out (pip install 'beit[dicom]')" in caplog.text and "dots in a name" not in caplog.text


def test_all_forms_of_sources_hold_all_formats(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    named = {f"{number}.{suffix}": data for number, (suffix, data) in enumerate(EACH.items()) if suffix != "npy"}
    for name, data in named.items():
        (folder / name).write_bytes(data)
    (tmp_path / "list.txt").write_text("\n".join(f"folder/{name.partition('.')[0]}" for name in named))
    rows = [{"bytes": data, "path": name} for name, data in named.items()]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    write_members(tmp_path / "a.tar", named)
    for place in ("folder", "list.txt", "a.parquet", "a.tar"):
        found = images_of(open_source(tmp_path / place))
        assert sorted(found) == sorted(named.values())
        assert all(decode_image(data, Decoding()).mode == "RGB" for data in found)


def test_arrays_are_images_where_there_are_no_others(tmp_path, caplog):
    (tmp_path / "a.npy").write_bytes(npy(smooth()))
    assert images_of(open_source(tmp_path)) == [npy(smooth())]
    assert images_of(open_source(tmp_path / "*.npy")) == [npy(smooth())]
    (tmp_path / "a.jpg").write_bytes(encoded_image(0))
    caplog.set_level("INFO")
    assert images_of(open_source(tmp_path)) == [encoded_image(0)]
    assert "1 images, 1 other files (1 .npy) left out" in caplog.text
    with pytest.raises(InputError, match="a.npy is no image, tar, Parquet, text or CSV file by its name"):
        open_source(tmp_path / "*.*")
    path = write_members(tmp_path / "a.tar", {"a.npy": npy(smooth()), "a.json": b"{}"})
    with pytest.raises(InputError, match="holds no images: its members end in json, npy"):
        open_source(path).shards[0].refs()
    assert images_of(open_source(path, image_member="npy")) == [npy(smooth())]


def test_many_images_of_one_missing_library_are_said_once(caplog):
    log = BadSampleLog(4000, 0.5)
    detail = "HEIC images are read after pip install 'beit[heic]'"
    log.add(BadSampleReport(f"shard/{number}", "needs-heic", detail) for number in range(1000))
    assert caplog.text.count("needs-heic") == 1 and "more of these are counted" in caplog.text
    assert log.counts["needs-heic"] == 1000
    with pytest.raises(
        InputError, match="1001 of 4000 .* 1001 needs-heic: HEIC images are read after pip install 'bei"
    ):
        BadSampleLog(4000, 0.25).add(BadSampleReport(f"shard/{n}", "needs-heic", detail) for n in range(1001))


def test_sizes_are_those_of_the_decoded_image():
    turned = tiff(smooth(), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    assert size_of_image(turned) == ((HEIGHT, WIDTH), None) and decode_image(turned, Decoding()).size == (HEIGHT, WIDTH)

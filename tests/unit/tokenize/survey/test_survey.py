import io
import json
import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from beit.benchmarks import science
from beit.common.errors import InputError
from beit.common.sources.config import SourceConfig
from beit.common.sources.loose_files import FilesReader
from beit.common.sources.opening import open_source
from beit.common.storage.samples import image_key
from beit.tests.support import write_images
from beit.tests.tiny_store import tiny_config, write_members
from beit.tests.unit.common.images.test_alpha import encoded, icon, noise, png
from beit.tests.unit.common.sources.test_glance import BESIDE, PAIRS, in_form, mask, photo
from beit.tokenize.commands import sources_command, tokenize_command
from beit.tokenize.survey import duplicates
from beit.tokenize.survey.dry_run import rehearse
from beit.tokenize.survey.listing import list_source
from beit.tokenize.survey.looking import look_at
from beit.tokenize.survey.survey import survey
from beit.tokenize.survey.text import survey_text

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DEEP = Image.fromarray(np.random.default_rng(0).integers(0, 4096, (40, 40), np.uint16))
TURN = Image.Exif()
TURN[0x0112] = 6
FORMS = ["folder", "list", "csv", "tar", "parquet"]
MIXED = {
    "a.jpg": photo(1),
    "b.jpg": encoded(Image.fromarray(noise(30, 50, 3)), "JPEG", exif=TURN),
    "deep.png": encoded(DEEP),
    "icon.png": encoded(icon((0, 0, 0))),
    "anim.webp": encoded(
        Image.fromarray(noise(40, 40, 3)), "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 40))]
    ),
    "ink.jpg": encoded(Image.fromarray(noise(40, 40, 3)).convert("CMYK"), "JPEG"),
}


def look(spec, settings=None, **options):
    return survey(spec, settings or SourceConfig(), **options)[0]


@pytest.mark.parametrize("form", FORMS)
def test_what_headers_say_in_every_form(form, tmp_path):
    found = look(in_form(tmp_path, form, MIXED))
    looks = found.looks
    assert found.num_images == found.num_looked_at == 6 and not found.refusals
    assert looks.formats == {"JPEG": 3, "PNG": 2, "WebP": 1} and looks.bits == {"8": 5, "16": 1}
    assert looks.colours == {"RGB": 4, "CMYK": 1, "grey": 1}
    assert (looks.num_transparent, looks.num_hiding, looks.num_turned, looks.num_animated) == (1, 1, 1, 1)
    assert (looks.smallest.width, looks.smallest.height) == (50, 30)
    assert looks.largest.path.endswith("icon.png") and looks.longest_side == 64 and looks.shortest_side == 30
    assert any("hide colours" in note for note in found.notes)
    assert found.kind in survey_text(found) or form in ("folder", "list", "csv")


def test_json_is_the_same_and_plain(tmp_path):
    found = look(in_form(tmp_path, "folder", MIXED))
    document = json.loads(json.dumps(found.to_json()))
    assert document["format"] == "beit-survey" and document["looks"]["formats"] == found.looks.formats


def nasty(folder):
    files = {f"images/{i}.jpg": photo(i) for i in range(4)} | {f"masks/{i}.png": mask(i) for i in range(4)}
    files |= {"lfs.jpg": POINTER, "lfs.png": POINTER, "lfs.bin": POINTER, "scan.raw": POINTER}
    files |= {"empty.jpg": b"", "page.jpg": b"<html>404", "cut.png": b"\x89PNG\r\n\x1a\n\0\0"}
    files |= {"huge.png": png(12000, 9000, 8, 2, [b""]), "notes.txt": b"hi", "clip.gif": b"GIF89a"}
    files |= {".hidden.jpg": photo(), ".cache/x.png": b"x", "y/._a.jpg": b"x"}
    in_form(folder, "folder", files)
    return str(folder / "x")


def test_what_is_left_out_has_reason_count_example_and_way_out(tmp_path):
    found = look(nasty(tmp_path))
    left = {one.reason: (one.count, one.example) for one in found.left_out}
    assert left == {
        "lfs-pointer": (2, "lfs.jpg"),
        "empty": (1, "empty.jpg"),
        "unsupported": (1, "page.jpg"),
        "decode-error": (1, "cut.png"),
        "bomb": (1, "huge.png"),
        "masks beside images": (4, "masks/0.png"),
        "pointers of Git LFS": (2, "lfs.bin"),
        ".gif": (1, "clip.gif"),
        ".txt": (1, "notes.txt"),
        "hidden images": (3, ".cache/x.png"),
    }
    ways = {one.reason: one.way_out for one in found.left_out}
    assert "source.max_megapixels=108" in ways["bomb"] and "git lfs pull" in ways["lfs-pointer"]
    assert "6 of 10 images cannot be used, but bad_sample_budget (0.001) allows 1" in found.refusals[0]
    assert look(nasty(tmp_path), budget=0.7).refusals == ()
    assert "108" not in survey_text(survey(nasty(tmp_path), SourceConfig(max_megapixels=120))[0])


def test_an_image_beyond_every_setting_is_said(tmp_path):
    source = in_form(tmp_path, "folder", {"a.png": png(60000, 50000, 8, 2, [b""]), "b.jpg": photo()})
    (left,) = look(source).left_out
    assert left.way_out == "up to 3000 megapixels, more than any setting admits"


def test_counts_of_a_sample_are_reckoned_up_and_marked(tmp_path):
    write_images(tmp_path / "a", 40)
    (tmp_path / "a/0000.png").write_bytes(b"")
    found = look(str(tmp_path / "a"), limit=10)
    assert (found.num_images, found.num_looked_at, found.scale) == (40, 10, 4)
    assert found.left_out[0].count == 4 and found.left_out[0].is_estimated
    text = survey_text(found)
    assert "~36 PNG" in text and "~4 empty" in text and "about 4 of 40 images" in text
    assert "by the headers of 10 images" in text and "~" not in survey_text(look(str(tmp_path / "a"), limit=0))


def test_labels_are_named_by_where_they_stand(tmp_path):
    write_images(tmp_path / "folder", 9, classes=("cat", "dog"))
    labels = look(str(tmp_path / "folder")).labels
    assert (labels.place, labels.num_classes, labels.num_labelled) == ("folders of the first level", 2, 9)
    assert (labels.smallest, labels.smallest_count, labels.largest, labels.largest_count) == ("dog", 4, "cat", 5)
    (tmp_path / "folder/t.csv").write_text("path,class\ncat/0000.png,a\ndog/0001.png,b\n")
    assert look(str(tmp_path / "folder/t.csv")).labels.place == "column class"
    members = {"a.jpg": photo(1), "a.cls": b"3", "b.jpg": photo(2), "b.cls": b"5", "c.jpg": photo(3)}
    labels = look(str(write_members(tmp_path / "a.tar", members))).labels
    assert (labels.place, labels.num_classes, labels.num_labelled) == ("members .cls", 2, 2)
    members = {"a.jpg": photo(1), "a.json": b'{"label": "cat"}'}
    assert look(str(write_members(tmp_path / "b.tar", members))).labels.place == "members .json"
    cells = [{"bytes": photo(i), "path": f"{i}"} for i in range(3)]
    pq.write_table(pa.table({"image": cells, "fine_label": ["x", "y", "x"]}), tmp_path / "a.parquet")
    found = look(str(tmp_path / "a.parquet"))
    assert found.labels.place == "column fine_label" and found.labels.largest == "x"
    assert look(in_form(tmp_path, "list", {"a.jpg": photo()})).labels is None


def test_splits_are_counted_and_leaks_between_them_said(tmp_path):
    files = {f"train/{i}.jpg": photo(i) for i in range(5)} | {f"val/{i}.jpg": photo(i) for i in range(4, 7)}
    found = look(in_form(tmp_path, "folder", files))
    assert found.splits == {"train": 5, "val": 3}
    assert found.duplicates.num_copies == found.duplicates.num_across_splits == 1
    assert any("1 image in several splits" in note for note in found.notes)
    assert any("mixes the splits ['train', 'val']" in note for note in found.notes)
    for name in ("train-0", "train-1", "val-0"):
        write_members(tmp_path / f"{name}.tar", {f"{name}.jpg": photo(len(name))})
    assert look(str(tmp_path / "*.tar")).splits == {"train": 2, "val": 1}


@pytest.mark.parametrize("form", FORMS)
def test_copies_are_found_by_their_bytes(form, tmp_path):
    files = {
        "a.jpg": photo(1),
        "b.jpg": photo(2),
        "c.jpg": photo(1),
        "d.jpg": photo(1),
        "e.jpg": POINTER,
        "f.jpg": POINTER,
    }
    found = look(in_form(tmp_path, form, files)).duplicates
    assert (found.num_compared, found.num_copies) == (4 if form == "parquet" else 6, 2)
    (group,) = found.groups
    assert [name.rpartition("/")[2].rpartition(": ")[2] for name in group] == ["a.jpg", "c.jpg", "d.jpg"]


def test_copies_of_several_labels_are_said(tmp_path):
    found = look(in_form(tmp_path, "folder", {"cat/a.jpg": photo(1), "dog/b.jpg": photo(1)}))
    assert any("with several labels" in note for note in found.notes)


def smooth(seed):
    small = Image.fromarray(noise(8, 8, 3, seed))
    return small.resize((128, 128), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("form", ["folder", "tar", "parquet"])
def test_images_that_look_alike_are_found(form, tmp_path):
    files = {f"{i}.png": encoded(smooth(i)) for i in range(6)}
    files |= {
        "again.jpg": encoded(smooth(2), "JPEG", quality=60),
        "half.webp": encoded(smooth(4).resize((64, 64)), "WEBP"),
    }
    files |= {"copy.png": files["0.png"], "cut.jpg": photo()[:-200]}
    found = look(in_form(tmp_path, form, files), looks_alike=True)
    alike = found.near_duplicates
    pairs = {frozenset(name.rpartition(": ")[2] for name in pair[:2]) for pair in alike.pairs}
    assert pairs == {frozenset({"2.png", "again.jpg"}), frozenset({"4.png", "half.webp"})}
    assert (alike.num_compared, alike.num_images, alike.num_undecodable) == (9, 4, 1)
    assert any("1 image damaged behind a good header" in note for note in found.notes)


def test_close_hashes_are_found_as_by_comparing_all():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 300, np.uint64)
    for number in range(60):  # a few bits of another one turned over
        for bit in rng.choice(64, rng.integers(0, 7), replace=False):
            hashes[200 + number] = hashes[number] if bit is None else hashes[200 + number]
        flips = np.uint64(sum(1 << int(bit) for bit in rng.choice(64, number % 7, replace=False)))
        hashes[200 + number] = hashes[number] ^ flips
    found = duplicates._close_pairs(hashes)
    differing = np.bitwise_count(hashes[:, None] ^ hashes)
    expected = {(int(i), int(j)) for i, j in np.argwhere(np.triu(differing <= 4, 1))}
    assert {(i, j) for i, j, _ in found} == expected and len(expected) >= 40


def test_many_equal_hashes_are_no_burden():
    found = duplicates._close_pairs(np.zeros(2000, np.uint64))
    assert found == [(i, i + 1, 0) for i in range(1999)]


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    source = in_form(tmp_path, "folder", {"a.jpg": photo()})
    for asked in (False, True):
        assert "pip install 'beit[duplicates]'" in survey_text(look(source, looks_alike=asked))


def test_masks_in_a_list_are_among_what_to_mind(tmp_path):
    assert any("look like masks" in note for note in look(in_form(tmp_path, "list", PAIRS)).notes)
    found = look(in_form(tmp_path / "beside", "folder", BESIDE))
    assert found.num_images == 6 and found.left_out[0].reason == "masks beside images"


def test_a_format_without_its_library_is_left_out_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("beit.common.images.formats._is_there", lambda libraries: not libraries)
    source = in_form(tmp_path, "folder", {"a.jpg": photo(), "b.heic": b"x", "c.heic": b"x", "d.dcm": b"x"})
    found = look(source)
    assert found.num_images == 1 and not found.refusals
    left = {one.reason: (one.count, one.example, one.way_out) for one in found.left_out}
    assert left[".heic"] == (2, "b.heic", "pip install 'beit[heic]'") and ".dcm" in left


def test_sizes_and_frames_of_other_formats_are_read(tmp_path):
    (tmp_path / "x").mkdir()
    tifffile.imwrite(tmp_path / "x/a.tif", np.zeros((50, 70), np.uint16))
    tifffile.imwrite(tmp_path / "x/b.tif", np.zeros((5, 50, 70), np.uint8))
    found = look(str(tmp_path / "x"))
    looks = found.looks
    assert looks.formats == {"TIFF": 2} and looks.bits == {"16": 1, "8": 1} and looks.num_animated == 1
    assert looks.channels == {"1": 2} and looks.colours == {"grey": 2} and looks.frames == {"1": 1, "5": 1}
    assert (looks.largest.width, looks.largest.height) == (70, 50)
    assert "1 have several frames or pages (5 each), of which one is used" in survey_text(found)
    assert "(5 each), each of which is used" in survey_text(look(str(tmp_path / "x"), SourceConfig(frame="each")))


def test_bands_and_floats_that_the_settings_do_not_reach_are_said_with_the_way_out(tmp_path):
    bands = np.zeros((50, 70, 4), np.uint16)
    (tmp_path / "x").mkdir()
    tifffile.imwrite(tmp_path / "x/a.tif", bands, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "x/b.tif", np.zeros((50, 70), np.float32))
    found = look(str(tmp_path / "x"))
    reasons = {left.reason: left.way_out for left in found.left_out}
    assert "of 4 bands: --set source.channels=[3,2,1]" in reasons["channels"] and found.refusals
    assert "--set source.range=[0,1]" in reasons["no-range"]
    text = survey_text(found)
    assert "1 of several bands, 1 grey" in text and "1: 1; 4: 1" in text and "16: 1; 32 float: 1" in text
    assert not look(str(tmp_path / "x"), SourceConfig(channels=(1,), range=(0.0, 1.0))).refusals
    assert look(str(tmp_path / "x"), SourceConfig(channels=(5,), range=(0.0, 1.0))).refusals


def test_samples_of_a_tar_without_an_image_are_counted(tmp_path):
    found = look(str(write_members(tmp_path / "a.tar", {"a.jpg": photo(1), "b.txt": b"x", "c.txt": b"x"})))
    (left,) = found.left_out
    assert (left.reason, left.count) == ("samples without an image", 2) and left.example.endswith("a.tar: b")


def test_what_is_there_and_refused_says_why(tmp_path):
    write_images(tmp_path / "a", 2)
    write_members(tmp_path / "a/x.tar", {"a.jpg": photo()})
    found = look(str(tmp_path / "a"))
    assert "mixes 2 images, 1 tars" in found.refusals[0] and "would be refused" in survey_text(found)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/lfs.tar").write_bytes(POINTER)
    assert "pointer of Git LFS" in look(str(tmp_path / "b")).refusals[0]
    (tmp_path / "c").mkdir()
    (tmp_path / "c/scan.raw").write_bytes(POINTER)
    found = look(str(tmp_path / "c"))
    assert found.left_out[0].reason == "pointers of Git LFS" and found.refusals


def test_what_is_not_there_is_bad_input(tmp_path):
    for spec in ("none", "none/*.jpg", "list.txt"):
        with pytest.raises(InputError):
            look(str(tmp_path / spec))


def test_log_handlers_are_put_back(tmp_path):
    log = logging.getLogger("beit.common.sources")
    before = (log.handlers[:], log.propagate)
    look(in_form(tmp_path, "folder", MIXED))
    assert (log.handlers, log.propagate) == before


def run(command, *words):
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)


def test_the_command_exits_by_what_tokenising_would_do(tmp_path):
    source = in_form(tmp_path, "folder", MIXED)
    result = run(sources_command, source, "--json", tmp_path / "f.json", "--out", tmp_path / "f.png")
    assert result.exit_code == 0 and "would be tokenised" in result.output
    assert json.loads((tmp_path / "f.json").read_text())["num_images"] == 6
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 500
    result = run(sources_command, nasty(tmp_path / "n"), "--json", "-")
    assert result.exit_code == 1 and json.loads(result.stdout)["refusals"]
    assert run(sources_command, nasty(tmp_path / "n"), "--set", "bad_sample_budget=0.9").exit_code == 0


def test_a_dry_run_says_more_and_writes_nothing(tmp_path):
    source = str(write_images(tmp_path / "a", 30, size=48))
    before = sorted(os.walk(tmp_path))
    result = run(tokenize_command, source, tmp_path / "store", "--dry-run", "--img-size", 32, "--patch-size", 4)
    assert result.exit_code == 0 and sorted(os.walk(tmp_path)) == before
    said = " ".join(result.output.split())  # lines are broken by how long the path is
    for word in (
        "30 images in loose files",
        "16 views of each at 32 px",
        "shards",
        "disk",
        "time",
        "would be tokenised",
    ):
        assert word in said


def test_a_dry_run_refuses_what_the_command_refuses(tmp_path):
    from beit.tokenize.forecast import load

    source = str(write_images(tmp_path / "a", 5))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("x")
    config = load(overrides=["views=2"])
    for store, words in (
        (tmp_path / "a/store", "must not lie inside the source"),
        (tmp_path / "other", "is not empty and not a token store"),
    ):
        found, rows = rehearse(config, source, str(store))
        assert words in found.refusals[0] and not rows
    found, rows = rehearse(config, source, str(tmp_path / "store"))
    assert not found.refusals and dict(rows)["shards"] == "1"
    assert not (tmp_path / "store").exists()


def test_a_picture_shows_pairs_that_look_alike(tmp_path):
    files = {f"{i}.png": encoded(smooth(i)) for i in range(3)} | {"again.jpg": encoded(smooth(2), "JPEG", quality=60)}
    source = in_form(tmp_path, "folder", files)
    run(sources_command, source, "--out", tmp_path / "plain.png")
    result = run(sources_command, source, "--duplicates", "--out", tmp_path / "pairs.png")
    assert "2 of 4 look like another" in result.output
    heights = [Image.open(io.BytesIO((tmp_path / name).read_bytes())).height for name in ("plain.png", "pairs.png")]
    assert heights[1] > heights[0] + 150


def test_a_picture_of_grey_images_is_drawn(tmp_path):
    source = in_form(tmp_path, "folder", {f"{i}.png": encoded(smooth(i)) for i in range(3)})
    result = run(sources_command, source, "--set", "source.channels=grey", "--out", tmp_path / "grey.png")
    assert "would be tokenised" in result.output and (tmp_path / "grey.png").exists()


def test_names_that_would_steer_a_terminal_are_escaped(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/red\x1b[31m\n.jpg").touch()
    (tmp_path / "x/bell.\x07").touch()
    text = survey_text(look(str(tmp_path / "x")))
    assert "red\\x1b[31m\\n.jpg" in text and "bell.\\x07" in text and text.replace("\n", "").isprintable()


def test_a_source_whose_images_are_all_unusable_is_refused_however_few_they_are(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.jpg").touch()
    assert "none of its images can be used" in look(str(tmp_path / "x")).refusals[0]


def test_a_folder_that_cannot_be_listed_is_refused_by_name(tmp_path, monkeypatch):
    write_images(tmp_path / "x", 2)
    (tmp_path / "x/locked").mkdir()
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = look(str(tmp_path / "x"))
    assert not found.kind and "cannot be listed" in found.refusals[0] and "locked" in found.refusals[0]


def test_links_in_circles_are_broken_links(tmp_path):
    write_images(tmp_path / "x", 2)
    (tmp_path / "x/self").symlink_to("self")
    (tmp_path / "x/one.jpg").symlink_to("two.jpg")
    (tmp_path / "x/two.jpg").symlink_to("one.jpg")
    (tmp_path / "x/up").symlink_to("..")
    found = look(str(tmp_path / "x"))
    assert found.num_images == 4 and {left.reason: left.count for left in found.left_out if left.is_unusable} == {
        "unreadable": 2
    }


def test_names_that_are_not_unicode_are_counted(tmp_path):
    write_images(tmp_path / "x", 1)
    for number in (1, 2):
        (tmp_path / "x" / os.fsdecode(b"\xff%d.jpg" % number)).write_bytes(photo())
    refusal = look(str(tmp_path / "x")).refusals[0]
    assert "holds 2 file names that are not UTF-8" in refusal and "convmv" in refusal


def test_slices_of_a_dicom_series_are_counted_and_the_way_out_works(tmp_path):
    (tmp_path / "x").mkdir()
    for number in range(8):
        path = tmp_path / f"x/{'head' if number < 4 else 'foot'}~p{number:04d}.dcm"
        science.write_chest(path, np.random.default_rng(number), "clear")
        made = pydicom.dcmread(path)
        made.SeriesInstanceUID = f"1.2.{number // 4}"
        made.save_as(path)
    found = look(str(tmp_path / "x"), SourceConfig(range="window"))
    assert (found.looks.num_slices, found.looks.num_series) == (8, 2)
    assert any("8 DICOM images belong to 2 series" in note for note in found.notes)
    assert "1.2.0" not in json.dumps(found.to_json())
    keys = [ref.key for ref in open_source(str(tmp_path / "x")).shards[0].refs()]
    assert {image_key(key) for key in keys} == {"head", "foot"} and len(set(keys)) == 8


@pytest.mark.parametrize(("setting", "is_refused"), [({}, True), ({"tile": 32}, False), ({"short_side": 32}, False)])
def test_a_dry_run_knows_that_large_images_are_cut_or_shrunk(tmp_path, setting, is_refused):
    (tmp_path / "x").mkdir()
    for number in range(6):
        tifffile.imwrite(tmp_path / f"x/{number}.tif", noise(100, 200, 3, number), photometric="rgb", tile=(32, 32))
    config = tiny_config(views=0, source=SourceConfig(max_megapixels=0.01), **setting)
    found, rows = rehearse(config, str(tmp_path / "x"), str(tmp_path / "store"))
    assert bool(found.refusals) == is_refused
    if is_refused:
        [left] = found.left_out
        assert left.reason == "bomb" and "(--short-side reads them smaller, --tile in parts)" in left.way_out
    else:
        assert rows and not found.left_out


def test_of_a_large_tiff_the_tags_alone_are_read(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    tifffile.imwrite(tmp_path / "x/a.tif", noise(400, 500, 3), photometric="rgb")
    listed = list_source(open_source(str(tmp_path / "x")), all_shards=True)

    def refuse(*given):
        raise AssertionError("all of it was read")

    monkeypatch.setattr(FilesReader, "read", refuse)
    [found] = look_at(listed, 0, SourceConfig())
    assert (found.facts.format, found.facts.width, found.facts.height, found.problem) == ("TIFF", 500, 400, None)

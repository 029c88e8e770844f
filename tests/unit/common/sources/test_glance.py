import logging
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beit.common.images.decoding import Decoding
from beit.common.sources.glance.few import draw, draw_of_source, few_of
from beit.common.sources.glance.headers import image_facts
from beit.common.sources.glance.masks import warn_of_masks
from beit.common.sources.glance.transparency import warn_of_hidden_colours
from beit.common.sources.index_build import build_index
from beit.common.sources.opening import open_source
from beit.common.sources.types import SampleRef
from beit.tests.support import write_images
from beit.tests.tiny_store import write_members
from beit.tests.unit.common.images.test_alpha import encoded, icon, noise


@pytest.fixture(autouse=True)
def messages(caplog):
    caplog.set_level(logging.WARNING)
    return caplog


def mask(seed=0):
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 3, (40, 40), np.uint8)))


def photo(seed=0):
    return encoded(Image.fromarray(noise(40, 40, 3, seed)), "JPEG")


def in_form(folder, form, files):
    """Put files into a folder, a list, tars or a table, and return how to name it."""
    if form == "tar":
        return str(write_members(folder / "a.tar", files))
    if form == "parquet":
        cells = [{"bytes": data, "path": name} for name, data in files.items()]
        pq.write_table(pa.table({"image": cells}), folder / "a.parquet")
        return str(folder / "a.parquet")
    for name, data in files.items():
        (folder / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "x" / name).write_bytes(data)
    if form == "folder":
        return str(folder / "x")
    if form == "pattern":
        return str(folder / "x" / "**" / "*.*")
    (folder / "list.txt").write_text("\n".join(f"x/{name}" for name in files))
    (folder / "table.csv").write_text("path\n" + "\n".join(f"x/{name}" for name in files))
    return str(folder / ("list.txt" if form == "list" else "table.csv"))


FORMS = ["folder", "pattern", "list", "csv", "tar", "parquet"]
ICONS = {f"{i}.png": encoded(icon((0, 0, 0))) for i in range(3)} | {f"photo{i}.jpg": photo(i) for i in range(4)}


@pytest.mark.parametrize("form", FORMS)
def test_hidden_colours_are_said_in_every_form(form, tmp_path, messages):
    source = open_source(in_form(tmp_path, form, ICONS))
    warn_of_hidden_colours(source, Decoding())
    assert "3 are transparent in parts, and 3 of these hide colours" in messages.text
    assert 'source.alpha="white"' in messages.text and "0.png" in messages.text


def test_a_background_or_opaque_images_say_nothing(tmp_path, messages):
    warn_of_hidden_colours(open_source(in_form(tmp_path, "folder", ICONS)), Decoding(alpha="white"))
    clean = {f"{i}.png": encoded(icon((250, 120, 0))) for i in range(3)} | {"p.jpg": photo()}
    warn_of_hidden_colours(open_source(in_form(tmp_path, "tar", clean)), Decoding())
    assert not messages.records


def test_files_called_as_jpegs_are_not_opened(tmp_path, messages, monkeypatch):
    source = open_source(in_form(tmp_path, "folder", {f"{i}.jpg": photo(i) for i in range(4)}))
    monkeypatch.setattr("beit.common.sources.loose_files.FilesReader.head", None)
    warn_of_hidden_colours(source, Decoding())
    assert not messages.records


@pytest.mark.parametrize("form", ["folder", "tar", "parquet"])
def test_the_index_of_a_training_is_looked_at_too(form, tmp_path, messages):
    index = build_index(in_form(tmp_path, form, ICONS), tmp_path / "cache")
    warn_of_hidden_colours(index, index.decoding)
    assert "3 of these hide colours" in messages.text


def test_damaged_images_are_passed_over(tmp_path, messages):
    files = ICONS | {"cut.png": encoded(icon((0, 0, 0)))[:-60], "none.png": b"", "text.png": b"<html>"}
    warn_of_hidden_colours(open_source(in_form(tmp_path, "folder", files)), Decoding())
    assert "3 of these hide colours" in messages.text


PAIRS = {f"images/{i}.jpg": photo(i) for i in range(6)} | {f"masks/{i}.png": mask(i) for i in range(6)}
BESIDE = {f"{i}.jpg": photo(i) for i in range(6)} | {f"{i}_mask.png": mask(i) for i in range(6)}


@pytest.mark.parametrize("form", ["list", "csv"])
@pytest.mark.parametrize("files", [PAIRS, BESIDE], ids=["folders", "beside"])
def test_masks_in_lists_are_said_and_kept(form, files, tmp_path, messages):
    source = open_source(in_form(tmp_path, form, files))
    warn_of_masks(source)
    assert "6 of its images look like masks of others" in messages.text
    assert sum(len(shard.refs()) for shard in source.shards) == 12


@pytest.mark.parametrize("form", ["folder", "pattern"])
@pytest.mark.parametrize("files", [PAIRS, BESIDE], ids=["folders", "beside"])
def test_masks_in_folders_and_patterns_are_left_out(form, files, tmp_path, messages):
    source = open_source(in_form(tmp_path, form, files))
    warn_of_masks(source)
    assert not messages.records and sum(len(shard.refs()) for shard in source.shards) == 6


def test_masks_that_are_samples_of_a_tar_are_said(tmp_path, messages):
    warn_of_masks(open_source(in_form(tmp_path, "tar", PAIRS)))
    assert "6 of its images look like masks of others (masks/)" in messages.text


@pytest.mark.parametrize("form", FORMS)
def test_nothing_but_masks_is_said(form, tmp_path, messages):
    warn_of_masks(open_source(in_form(tmp_path, form, {f"m/{i}.png": mask(i) for i in range(5)})))
    assert "masks by all appearance" in messages.text


@pytest.mark.parametrize("form", FORMS)
def test_photos_of_a_class_called_masks_are_pictures(form, tmp_path, messages):
    files = {f"masks/{i}.jpg": photo(i) for i in range(4)} | {f"hats/h{i}.jpg": photo(i + 9) for i in range(4)}
    source = open_source(in_form(tmp_path, form, files))
    warn_of_masks(source)
    assert not messages.records and sum(len(shard.refs()) for shard in source.shards) == 8


def test_colours_of_icons_are_few_and_no_masks(tmp_path, messages):
    warn_of_masks(open_source(in_form(tmp_path, "folder", {f"i/{i}.png": encoded(icon((0, 0, 0))) for i in range(4)})))
    assert not messages.records


def test_colour_masks_are_told_by_their_names(tmp_path, messages):
    files = {f"seg/{i}_color.png": encoded(icon((0, 0, 0)).convert("RGB")) for i in range(4)}
    warn_of_masks(open_source(in_form(tmp_path, "folder", files)))
    assert "masks by all appearance" in messages.text


class NoShard:
    """Opens to nothing."""

    kind = "files"

    @contextmanager
    def open(self):
        yield None


@pytest.mark.parametrize(
    ("sizes", "count", "drawn"),
    [
        ([3, 0, 50, 7], 9, [(2, 0), (2, 3), (2, 12), (2, 22), (2, 27), (2, 36), (2, 42), (2, 49), (3, 5)]),
        (
            [10] * 40,
            12,
            [(1, 3), (2, 7), (7, 2), (12, 4), (15, 4), (18, 7), (22, 4), (26, 2), (28, 5), (31, 3), (33, 3), (38, 7)],
        ),
        ([2, 1], 8, [(0, 0), (0, 1), (1, 0)]),
    ],
)
def test_what_percentiles_are_found_over_never_changes(sizes, count, drawn):
    """Stores and encoders record them: these are the images that were drawn in the first version."""
    shards = [NoShard() for _ in sizes]

    def ref_of(shard, rank):
        return SampleRef("", 0, 0, None, f"{shard} {rank}")

    found = [one.ref.path for one in draw(shards, sizes, ref_of, count)]
    assert found == [f"{shard} {rank}" for shard, rank in drawn]


def test_few_are_the_same_of_a_source_and_its_index_and_spread_over_all(tmp_path):
    write_images(tmp_path / "a", 30)
    found = [one.ref.path for one in few_of(open_source(tmp_path / "a"), 10)]
    assert len(found) == 10 and all(3 * i <= int(path[:4]) < 3 * i + 3 for i, path in enumerate(found))
    index = build_index(tmp_path / "a", tmp_path / "cache")
    assert [one.ref.path for one in few_of(index, 10)] == found
    even = [one.ref.path for one in few_of(index, 10, wants=lambda path: int(path[:4]) % 2 == 0)]
    assert len(even) == 10 and all(int(path[:4]) % 2 == 0 for path in even)


def test_of_row_groups_the_first_rows_are_had_quickly(tmp_path):
    in_form(tmp_path, "parquet", {f"{i:02}.png": encoded(icon((0, 0, 0))) for i in range(20)})
    source = open_source(next(tmp_path.rglob("*.parquet")))
    rows = [one.ref.offset for one in few_of(source, 4)]
    assert rows == [0, 1, 2, 3]
    assert len({one.ref.offset // 5 for one in draw_of_source(source, 4)}) == 4
    assert all(one.read() for one in few_of(source, 4))


def test_a_long_header_is_read_to_its_end(tmp_path):
    data = encoded(Image.fromarray(noise(40, 60, 3)), "JPEG", icc_profile=bytes(300_000))
    (tmp_path / "x.jpg").write_bytes(data)
    source = open_source(tmp_path)
    with source.shards[0].open() as reader:
        assert image_facts(reader, source.shards[0].refs()[0]).width == 60

"""Large images cut while they are packed: which samples they become, however the run was interrupted or shared."""

import io
import json
import re
import tarfile
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from beit.common.errors import InputError, ResumableStop
from beit.common.images.large.tiles import Tiling
from beit.common.shards.schema import HeldOut
from beit.common.sources.config import SourceConfig
from beit.common.store import open_store
from beit.tests.tiny_store import tiny_config, tokenize, tree_bytes, write_members
from beit.tokenize import run, setup
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.cutting import cuts
from beit.tokenize.packing import pack
from beit.tokenize.survey.dry_run import rehearse

TILE, OVERLAP = 32, 8


def pixels(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array, suffix="png"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, {"png": "PNG", "jpg": "JPEG"}[suffix])
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "images"
    for name in ("map", "photo"):
        (folder / name).mkdir(parents=True)
    (folder / "photo/wide.png").write_bytes(encoded(pixels(100, 40)))
    (folder / "photo/small.jpg").write_bytes(encoded(pixels(32, 20), "jpg"))
    tifffile.imwrite(
        folder / "map/scene.tif", pixels(70, 90, 1), photometric="rgb", tile=(16, 16), compression="deflate"
    )
    return folder


def samples_of(store):
    """Every sample by its key: the image, and what its JSON says."""
    found = {}
    for path in sorted((store / "images").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            key, _, suffix = name.partition(".")
            if suffix != "json":
                image = np.asarray(Image.open(io.BytesIO(data)))
                found[key] = suffix, image, json.loads(members[f"{key}.json"])
    return found


def cut(images, store, /, **changes):
    return tokenize(images, store, **{"tile": TILE, "overlap": OVERLAP, "views": 0, "shard_size": 8} | changes)


def test_each_tile_is_a_sample_that_says_where_it_was(source, tmp_path):
    summary = cut(source, tmp_path / "store")
    found = samples_of(tmp_path / "store")
    tiling = Tiling(TILE, OVERLAP)
    assert summary.num_samples == len(found) == tiling.count((100, 40)) + 1 + tiling.count((70, 90))
    whole = {"photo/wide.png": pixels(100, 40), "map/scene.tif": pixels(70, 90, 1)}
    for key, (suffix, image, said) in found.items():
        if said["path"] == "photo/small.jpg":
            assert (suffix, "tile" in said, "~" in key) == ("jpg", False, False)
            continue
        row, column = map(int, re.fullmatch(r".*~y(\d{4})x(\d{4})", key).groups())
        left, top, right, bottom = said["tile"]["box"]
        expected = whole[said["path"]]
        assert suffix == "png" and said["tile"]["size"] == [expected.shape[1], expected.shape[0]]
        assert (image == expected[top:bottom, left:right]).all() and image.shape == (TILE, TILE, 3)
        assert (left, top) == (tiling.starts(expected.shape[1])[column], tiling.starts(expected.shape[0])[row])
        assert said["label"] == {"map": 0, "photo": 1}[said["path"].partition("/")[0]]


def test_an_image_no_larger_than_a_tile_stays_byte_for_byte(source, tmp_path):
    cut(source, tmp_path / "store")
    data = (source / "photo/small.jpg").read_bytes()
    assert sum(data in path.read_bytes() for path in (tmp_path / "store/images").glob("*.tar")) == 1


def test_a_tiled_store_is_tokenised_verified_and_audited(source, tmp_path):
    tokenize(source, tmp_path / "store", tile=TILE, overlap=OVERLAP)
    from beit.tests.tiny_store import BlockSums

    report = verify_store(tmp_path / "store", audit=5, tokenizer=BlockSums())
    assert not report.problems and report.audit.agreement == 1
    info = open_store(tmp_path / "store").info
    assert (info.packing.tile, info.packing.overlap, info.decoding.is_usual) == (TILE, OVERLAP, True)


def test_ranks_and_interruptions_give_the_same_store(source, tmp_path, monkeypatch):
    cut(source, tmp_path / "one", workers=1)
    expected = tree_bytes(tmp_path / "one")
    cut(source, tmp_path / "two", rank=1, world_size=2)
    assert tree_bytes(tmp_path / "two") == expected
    write, written = pack._write_tar, []

    def stop_at_the_second(*arguments):
        if written:
            raise ResumableStop("stopped")
        written.append(write(*arguments))
        return written[0]

    monkeypatch.setattr(pack, "_write_tar", stop_at_the_second)
    with pytest.raises(ResumableStop):
        cut(source, tmp_path / "three")
    monkeypatch.undo()
    kept = next((tmp_path / "three/images").glob("*.tar"))
    before = kept.stat().st_mtime_ns
    cut(source, tmp_path / "three")
    assert kept.stat().st_mtime_ns == before and tree_bytes(tmp_path / "three") == expected


def test_cuts_of_a_row_do_not_change_the_samples(source, tmp_path, monkeypatch):
    cut(source, tmp_path / "wide", keep_order=True, shard_size=1000)
    monkeypatch.setattr(cuts, "CUT_PIXELS", 1)
    cut(source, tmp_path / "narrow", keep_order=True, shard_size=1000)
    wide, narrow = samples_of(tmp_path / "wide"), samples_of(tmp_path / "narrow")
    assert list(wide) == list(narrow)
    assert all((wide[key][1] == narrow[key][1]).all() for key in wide)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_in_containers_are_cut_like_files(source, tmp_path, kind):
    images = {"wide": encoded(pixels(100, 40)), "scene": (source / "map/scene.tif").read_bytes()}
    if kind == "tar":
        given = tmp_path / "given"
        given.mkdir()
        names = {"wide.png": images["wide"], "scene.tif": images["scene"]}
        write_members(given / "a.tar", names)
    else:
        given = tmp_path / "given.parquet"
        cells = [{"bytes": data, "path": f"{name}.png"} for name, data in images.items()]
        pq.write_table(pa.table({"image": cells}), given)
    cut(given, tmp_path / "store")
    found = samples_of(tmp_path / "store")
    tiling = Tiling(TILE, OVERLAP)
    assert len(found) == tiling.count((100, 40)) + tiling.count((70, 90))
    for _, image, said in found.values():
        left, top, right, bottom = said["tile"]["box"]
        whole = pixels(100, 40) if said["tile"]["size"] == [100, 40] else pixels(70, 90, 1)
        assert (image == whole[top:bottom, left:right]).all()


def test_tiles_of_one_colour_are_kept_and_said_or_left_out_and_counted(tmp_path, caplog):
    (tmp_path / "images").mkdir()
    array = pixels(64, 32)
    array[:, :32] = 250
    (tmp_path / "images/half.png").write_bytes(encoded(array))
    caplog.set_level("INFO", "beit")
    summary = cut(tmp_path / "images", tmp_path / "kept", overlap=0)
    assert (summary.num_samples, summary.num_blank) == (2, 0)
    assert "1 of 2 tiles are next to one colour" in caplog.text and "tile_min_std=2" in caplog.text
    summary = cut(tmp_path / "images", tmp_path / "left-out", overlap=0, tile_min_std=2.0)
    assert (summary.num_samples, summary.num_blank, summary.skipped.total()) == (1, 1, 0)
    assert "1 tiles next to one colour" in summary.as_table()
    assert cut(tmp_path / "images", tmp_path / "left-out", overlap=0, tile_min_std=2.0).num_blank == 1


def test_a_damaged_part_of_a_tiff_costs_only_the_tiles_that_show_it(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "images/scene.tif"
    tifffile.imwrite(path, pixels(96, 96), photometric="rgb", tile=(32, 32), compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[0].dataoffsets[4], tiff.pages[0].databytecounts[4]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = bytes(length)
    path.write_bytes(data)
    summary = cut(tmp_path / "images", tmp_path / "store", overlap=0)
    assert summary.num_samples == 8 and dict(summary.skipped) == {"decode-error": 1}
    manifest = [json.loads(file.read_text()) for file in (tmp_path / "store/images").glob("*.json")]
    assert [sample["key"][-11:] for one in manifest for sample in one["skipped"]] == ["~y0001x0001"]


def test_an_image_that_cannot_be_read_counts_once(source, tmp_path):
    (source / "photo/bad.png").write_bytes(encoded(pixels(100, 40))[:-500])
    (source / "photo/none.png").write_bytes(b"nothing")
    summary = cut(source, tmp_path / "store", views=1)
    assert summary.skipped.total() == 2 and summary.num_samples == 21


@pytest.fixture
def half_bad(tmp_path, monkeypatch):
    """Twelve images of 12 tiles in many tars, two of which have a good header and no more; a cut is one tile."""
    monkeypatch.setattr(cuts, "CUT_PIXELS", 1)
    folder = tmp_path / "half-bad"
    folder.mkdir()
    for number in range(12):
        path = folder / f"{number:02d}.tif"
        tifffile.imwrite(path, pixels(128, 96, number), photometric="rgb", tile=(32, 32), compression="deflate")
    for name in ("03", "08"):
        path = folder / f"{name}.tif"
        with tifffile.TiffFile(path) as tiff:
            offset, length = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
        data = bytearray(path.read_bytes())
        for start, size in zip(offset, length, strict=True):
            data[start : start + size] = bytes(size)
        path.write_bytes(data)
    return folder


@pytest.fixture
def truncated(tmp_path):
    """The same as PNG, which end early: each cut finds that nothing of the image can be decoded."""
    folder = tmp_path / "truncated"
    folder.mkdir()
    for number in range(12):
        data = encoded(pixels(128, 96, number))
        (folder / f"{number:02d}.png").write_bytes(data[:-2000] if number in (3, 8) else data)
    return folder


MANY_TARS = {"overlap": 0, "shard_size": 5, "views": 1}


def test_an_image_in_many_tars_counts_once_against_images_in_one_rank_in_two_and_resumed(truncated, tmp_path, caplog):
    one = cut(truncated, tmp_path / "one", bad_sample_budget=0.17, **MANY_TARS)  # 2 of 12; of samples it would be 1/11
    entries = [
        (sample["key"].partition("-")[0], sample["share"], path.name)
        for path in (tmp_path / "one/tokens").glob("*.json")
        for sample in json.loads(path.read_text())["skipped"]
    ]
    assert len({name for _, _, name in entries}) > 2 and {key for key, _, _ in entries} == {"03", "08"}
    assert sum(share for _, share, _ in entries) == pytest.approx(2)
    assert dict(one.skipped) == {"truncated": 2} and one.num_samples == 120
    for words in ("cannot be packed", "cannot be used"):
        said = [record.getMessage() for record in caplog.records if words in record.getMessage()]
        assert len(said) == 2, said
    cut(truncated, tmp_path / "two", rank=1, world_size=2, bad_sample_budget=0.17, **MANY_TARS)
    assert tree_bytes(tmp_path / "two") == tree_bytes(tmp_path / "one")
    for name in sorted((tmp_path / "two/tokens").iterdir())[:9]:
        name.unlink()
    assert cut(truncated, tmp_path / "two", bad_sample_budget=0.17, **MANY_TARS).skipped == one.skipped
    assert tree_bytes(tmp_path / "two") == tree_bytes(tmp_path / "one")


@pytest.mark.parametrize("world_size", [1, 2])
def test_too_many_images_are_refused_by_their_number(truncated, tmp_path, world_size):
    ranks = {"rank": world_size - 1, "world_size": world_size}
    with pytest.raises(InputError, match=r"1\.\d of 12 images cannot be used, but bad_sample_budget \(0.1\) allows 1"):
        cut(truncated, tmp_path / "store", bad_sample_budget=0.1, **MANY_TARS, **ranks)
    with pytest.raises(InputError, match=r"of 12 images cannot be used, but bad_sample_budget \(0\) allows 0"):
        cut(truncated, tmp_path / "strict", strict=True, **MANY_TARS, **ranks)


def test_damaged_tiles_count_as_parts_of_their_image(half_bad, tmp_path):
    summary = cut(half_bad, tmp_path / "store", bad_sample_budget=0.17, **MANY_TARS)
    assert dict(summary.skipped) == {"decode-error": 24} and summary.num_samples == 120
    with pytest.raises(InputError, match=r"1.1 of 12 images cannot be used, but bad_sample_budget \(0.16\) allows 1"):
        cut(half_bad, tmp_path / "store", bad_sample_budget=0.16, **MANY_TARS)


def test_a_file_of_pages_counts_once(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        with tifffile.TiffWriter(tmp_path / f"images/{number}.tif") as tiff:
            for page in range(4):
                tiff.write(pixels(24, 16, page), photometric="rgb", compression="deflate")
    for number in (2, 4):
        path = tmp_path / f"images/{number}.tif"
        with tifffile.TiffFile(path) as tiff:
            places = [(page.dataoffsets[0], page.databytecounts[0]) for page in tiff.pages]
        data = bytearray(path.read_bytes())
        for start, size in places:
            data[start : start + size] = bytes(size)
        path.write_bytes(data)
    settings = {"tile": 0, "overlap": 0, "source": SourceConfig(frame="each"), "shard_size": 3}
    assert cut(tmp_path / "images", tmp_path / "store", bad_sample_budget=0.34, **settings).num_samples == 16
    with pytest.raises(
        InputError, match=r"[12](\.5)? of 6 images cannot be used, but bad_sample_budget \(0.3\) allows 1"
    ):
        cut(tmp_path / "images", tmp_path / "store", bad_sample_budget=0.3, **settings)


def test_a_jpeg_quality_is_for_tiles_too(source, tmp_path):
    cut(source, tmp_path / "store", jpeg_quality=80)
    assert {suffix for suffix, _, _ in samples_of(tmp_path / "store").values()} == {"jpg"}


def test_tiles_may_be_materialised(source, tmp_path):
    summary = tokenize(source, tmp_path / "store", tile=TILE, materialize=True)
    assert summary.num_samples and not verify_store(tmp_path / "store").problems


def test_each_page_is_a_sample_of_its_own(tmp_path):
    (tmp_path / "images").mkdir()
    with tifffile.TiffWriter(tmp_path / "images/stack.tif") as tiff:
        for number in range(3):
            tiff.write(pixels(40, 24, number), photometric="rgb")
    (tmp_path / "images/one.png").write_bytes(encoded(pixels(20, 20)))
    each = SourceConfig(frame="each")
    cut(tmp_path / "images", tmp_path / "pages", tile=0, overlap=0, source=each)
    found = samples_of(tmp_path / "pages")
    pages = {said["tile"]["page"]: image for _, image, said in found.values() if "tile" in said}
    assert len(found) == 4 and all((pages[number] == pixels(40, 24, number)).all() for number in range(3))
    assert sum(re.search(r"~p000[012]$", key) is not None for key in found) == 3
    cut(tmp_path / "images", tmp_path / "tiles", overlap=0, source=each)
    assert sum(re.search(r"~p0002y0000x0001$", key) is not None for key in samples_of(tmp_path / "tiles")) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tile": 32, "overlap": 32}, r"overlap \(32\) must be at least 0 px and smaller than tile \(32\)"),
        ({"overlap": 8}, r"overlap \(8\) is for tiles; it needs tile, such as --tile 1024"),
        ({"tile_min_std": 2.0}, r"tile_min_std \(2.0\) is for tiles"),
        ({"tile": 32, "short_side": 16}, "leave one out"),
        ({"tile": -1}, "tile"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        tiny_config(**changes)


def test_a_store_of_tiles_is_not_continued_with_others(source, tmp_path):
    cut(source, tmp_path / "store")
    with pytest.raises(InputError, match=r"packing.overlap \(0\) differs from that of store"):
        cut(source, tmp_path / "store", overlap=0)


def test_memory_is_bounded_by_a_run_of_tiles_not_by_the_image(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    side, segment = 4096, np.zeros((256, 256, 3), np.uint8)
    tifffile.imwrite(
        tmp_path / "images/large.tif", iter([segment] * (side // 256) ** 2), shape=(side, side, 3), dtype=np.uint8,
        tile=(256, 256), photometric="rgb", compression="deflate",
    )  # fmt: skip
    monkeypatch.setattr(cuts, "CUT_PIXELS", 4 * 256**2)
    peaks, made = [], pack.pieces_of

    def measured(*arguments, **settings):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found = made(*arguments, **settings)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        return found

    monkeypatch.setattr(pack, "pieces_of", measured)
    tracemalloc.start()
    summary = cut(tmp_path / "images", tmp_path / "store", tile=256, overlap=0, shard_size=1000, workers=1)
    tracemalloc.stop()
    assert summary.num_samples == 256 and len(peaks) == 64
    assert max(peaks) < 4 * 3 * 4 * 256**2 < 3 * side**2 / 10


def test_moments_of_an_animation_are_pages_too(tmp_path):
    (tmp_path / "images").mkdir()
    first, *rest = (Image.fromarray(pixels(24, 16, number)) for number in range(3))
    first.save(tmp_path / "images/moving.png", save_all=True, append_images=rest)
    cut(tmp_path / "images", tmp_path / "pages", tile=0, overlap=0, source=SourceConfig(frame="each"))
    found = {said["tile"]["page"]: image for _, image, said in samples_of(tmp_path / "pages").values()}
    assert all((found[number] == pixels(24, 16, number)).all() for number in range(3)) and len(found) == 3


@pytest.fixture
def slides(tmp_path):
    """Eight images of 12 tiles, and one of three pages."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.png").write_bytes(encoded(pixels(128, 96, number)))
    pages = np.stack([pixels(64, 64, number)[..., 0] for number in range(3)])
    tifffile.imwrite(folder / "pages.tif", pages, photometric="minisblack")
    return folder


def held_out_images(store):
    """Images with samples on each side, by the rule that readers go by: the hash in the table, and the threshold."""
    opened = open_store(store)
    sides = {False: set(), True: set()}
    for shard in range(len(opened.shards)):
        table = opened.samples(shard)
        for key, is_held_out in zip(table.key, table.held_out(opened.info.held_out.threshold), strict=True):
            sides[bool(is_held_out)].add(key.partition("~")[0])
    return sides[True], sides[False], opened.info.held_out_by


@pytest.mark.parametrize("frame", ["first", "each"])
def test_tiles_and_pages_of_an_image_are_held_out_together_whoever_writes_the_store(slides, tmp_path, frame):
    settings = {"overlap": 0, "source": SourceConfig(frame=frame), "held_out": HeldOut(minimum=9)}
    one = cut(slides, tmp_path / "one", **settings)
    held_out, trained, by = held_out_images(tmp_path / "one")
    assert held_out and not held_out & trained and by == "image"
    assert one.num_held_out >= 9 and not verify_store(tmp_path / "one").problems
    cut(slides, tmp_path / "two", rank=1, world_size=2, **settings)
    assert tree_bytes(tmp_path / "two") == tree_bytes(tmp_path / "one")


def test_a_second_store_over_the_tiles_holds_out_the_same_images(slides, tmp_path):
    cut(slides, tmp_path / "one", overlap=0)
    tokenize(tmp_path / "one/images", tmp_path / "two", views=1, seed=5)
    assert held_out_images(tmp_path / "two") == held_out_images(tmp_path / "one")


def test_a_store_begun_before_goes_on_tile_by_tile_and_verifies(slides, tmp_path, monkeypatch):
    """Its store.json lacks `held_out_by`."""
    store = tmp_path / "store"
    settings = {"overlap": 0, "held_out": HeldOut(minimum=9)}
    real = setup.build_info
    monkeypatch.setattr(setup, "build_info", lambda *given: replace(real(*given), held_out_by="sample"))
    monkeypatch.setattr(run, "build_info", setup.build_info)
    cut(slides, store, **settings)
    monkeypatch.undo()
    expected = tree_bytes(store)
    held_out, trained, by = held_out_images(store)
    assert held_out & trained and by == "sample"
    document = json.loads((store / "store.json").read_text())
    del document["held_out_by"]
    (store / "store.json").write_text(json.dumps(document))
    assert not verify_store(store).problems
    for path in [*sorted((store / "tokens").iterdir())[:6], store / "index.parquet"]:
        path.unlink()
    cut(slides, store, **settings)
    again = tree_bytes(store)
    assert {name: again[name] for name in again if name != "store.json"} == {
        name: expected[name] for name in expected if name != "store.json"
    }
    assert not verify_store(store).problems
    tokenize(store / "images", tmp_path / "second", views=1, held_out=HeldOut(minimum=9))
    assert held_out_images(tmp_path / "second") == (held_out, trained, "sample")


def test_a_single_slide_is_parted_and_that_is_said_before_and_after(slides, tmp_path, caplog):
    (tmp_path / "one").mkdir()
    (slides / "0.png").rename(tmp_path / "one/0.png")
    summary = cut(tmp_path / "one", tmp_path / "store", overlap=0)
    said = [
        record.message for record in caplog.records if "all 12 samples were cut from a single image" in record.message
    ]
    assert len(said) == 2 and "2 samples are held out whose neighbours" in said[0] and summary.num_held_out == 2


def test_a_dry_run_tells_samples_and_what_is_held_out(slides, tmp_path):
    config = tiny_config(tile=TILE, overlap=0, views=0)
    _, rows = rehearse(config, str(slides), str(tmp_path / "store"))
    summary = cut(slides, tmp_path / "store", overlap=0)
    expected = f"9 images cut into 100 samples, {summary.num_held_out} of them held out"
    assert dict(rows)["images"].startswith(expected)

"""Images cut, looked at and put together again: rows of tiles and their mean, masks of any size."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from beit.common.errors import InputError, ResumableStop
from beit.common.images.decoding import USUAL
from beit.common.images.large.tiles import Tiling
from beit.common.images.large.windows import WholeImage
from beit.common.sources.config import SourceConfig
from beit.finetune.masks.classes import IGNORED
from beit.finetune.prediction import masks as masks_module
from beit.finetune.prediction.masks import check_mask_options, predict_masks
from beit.finetune.prediction.predict import load_predictor
from beit.finetune.prediction.tiles import predict_tiles_to_file, tiling_of
from beit.finetune.segmentation.artifact import load_segmenter
from beit.finetune.segmentation.tiled import segment_tiles
from beit.tests.encoders import save_classifier, save_segmenter

NAMES = ("sky", "road", "tree")
TILING = Tiling(48, 16)
SMALL = SourceConfig(max_megapixels=0.005)  # 5000 pixels; the scene has 13 000
SCENE = (130, 100)


def pixels(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(pixels((60, 70))).save(folder / "photo.png")
    options = {"photometric": "rgb", "tile": (32, 32), "compression": "deflate"}
    tifffile.imwrite(folder / "scene.tif", pixels(SCENE, 1), **options)
    return folder


@pytest.fixture
def segmenter(tmp_path):
    save_segmenter(tmp_path / "model", class_names=NAMES, micro_batch_size=2)
    return tmp_path / "model"


@pytest.fixture
def classifier(tmp_path):
    save_classifier(tmp_path / "classifier", class_names=NAMES)
    return tmp_path / "classifier"


def rows_of(model, source, tiling=TILING, **options):
    stdout = io.StringIO()
    predict_tiles_to_file(model, str(source), tiling, out=None, stdout=stdout, **options)
    return list(csv.DictReader(io.StringIO(stdout.getvalue())))


def test_a_row_for_each_tile_and_their_mean_for_the_image(classifier, photos):
    rows = rows_of(classifier, photos, settings=SMALL)
    assert list(rows[0])[:8] == ["key", "tile", "left", "top", "right", "bottom", "label", "probability"]
    for key, size in (("photo.png", (60, 70)), ("scene.tif", SCENE)):
        tiles, (whole,) = (
            [row for row in rows if row["key"] == key and bool(row["tile"]) == is_tile] for is_tile in (True, False)
        )
        assert [row["tile"] for row in tiles] == [tile.name for tile in TILING.tiles(size)]
        assert [int(tiles[-1][side]) for side in ("right", "bottom")] == list(size)
        assert [int(whole[side]) for side in ("left", "top", "right", "bottom")] == [0, 0, *size]
        places = ["", *(f"_{place}" for place in range(2, 1 + len(NAMES)))]
        chances = [{row[f"label{place}"]: float(row[f"probability{place}"]) for place in places} for row in tiles]
        for place in places:
            mean = np.mean([chance[whole[f"label{place}"]] for chance in chances])
            assert float(whole[f"probability{place}"]) == pytest.approx(mean, abs=1e-5)


def test_tiles_are_decoded_as_the_images_that_a_model_was_trained_on(classifier, photos, tmp_path):
    """With its own range and channels, not those of an ordinary photograph; unless told otherwise."""
    ranged = replace(SMALL, range=(0, 51))
    save_classifier(tmp_path / "ranged", class_names=NAMES, decoding=ranged.decoding.of_any_size())
    rows = rows_of(tmp_path / "ranged", photos, settings=SMALL)
    assert rows == rows_of(classifier, photos, settings=ranged) != rows_of(classifier, photos, settings=SMALL)
    otherwise = rows_of(tmp_path / "ranged", photos, settings=replace(SMALL, range="dtype"))
    assert otherwise == rows_of(classifier, photos, settings=SMALL)


def test_a_tile_is_looked_at_as_a_whole(classifier, photos):
    rows = rows_of(classifier, photos / "photo.png")
    predictor = load_predictor(classifier, features=False)
    side = predictor.stored.architecture.img_size
    shown = Image.fromarray(pixels((60, 70))).crop((0, 0, 48, 48)).resize((side, side), Image.Resampling.BICUBIC)
    with torch.inference_mode():
        (expected,) = predictor(torch.from_numpy(np.asarray(shown).transpose(2, 0, 1).copy())[None], ["photo.png"])
    assert rows[0]["label"] == expected.label
    assert float(rows[0]["probability"]) == pytest.approx(expected.probability, abs=1e-5)


def test_tables_of_other_kinds_have_the_boxes_too(classifier, photos, tmp_path):
    predict_tiles_to_file(
        classifier, str(photos / "photo.png"), TILING, out=tmp_path / "rows.jsonl", stdout=io.StringIO()
    )
    first, *_, last = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (first["tile"], first["left"], first["right"]) == ("y0000x0000", 0, 48)
    assert (last["tile"], last["bottom"]) == ("", 70)


def damage(path, number):
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[0].dataoffsets[number], tiff.pages[0].databytecounts[number]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = bytes(length)
    path.write_bytes(data)


def test_a_damaged_tile_is_left_out_of_the_rows_and_ignored_in_the_mask(
    classifier, segmenter, photos, tmp_path, caplog
):
    damage(photos / "scene.tif", 0)
    scene = str(photos / "scene.tif")
    rows = rows_of(classifier, scene, Tiling(32), settings=SMALL)
    assert len(rows) == Tiling(32).count(SCENE) and rows[0]["tile"] == "y0000x0001"
    predict_masks(segmenter, scene, out=tmp_path / "out", tiling=Tiling(32), settings=SMALL)
    ids = tifffile.imread(tmp_path / "out/masks/scene.tif")
    assert (ids[:32, :32] == IGNORED).all() and (ids != IGNORED).sum() == ids.size - 32 * 32
    assert caplog.text.count("1 of 20 tiles cannot be read") == 2


def test_masks_are_blended_and_written_at_full_size(segmenter, photos, tmp_path):
    table = predict_masks(segmenter, str(photos), out=tmp_path / "out", overlays=True, tiling=TILING, settings=SMALL)
    model, _, info = load_segmenter(segmenter)
    found = {
        "photo.png": np.asarray(Image.open(tmp_path / "out/masks/photo.png")),
        "scene.tif": tifffile.imread(tmp_path / "out/masks/scene.tif"),
    }
    for name, array in (("photo.png", pixels((60, 70))), ("scene.tif", pixels(SCENE, 1))):
        with torch.inference_mode():
            strips = segment_tiles(model, WholeImage(Image.fromarray(array)), info.inference, TILING)
            expected = np.concatenate([strip.ids for strip in strips])
        assert (found[name] == expected).all()
    with tifffile.TiffFile(tmp_path / "out/masks/scene.tif") as tiff:
        page = tiff.pages.first
        colours = page.colormap[:, found["scene.tif"]].transpose(1, 2, 0) // 257
        assert page.is_tiled and page.photometric == 3
    legend = json.loads((tmp_path / "out/legend.json").read_text())
    assert legend["model"]["tiling"] == {"tile": 48, "overlap": 16}
    assert colours[0, 0].tolist() == legend["classes"][found["scene.tif"][0, 0]]["colour"]
    assert Image.open(tmp_path / "out/overlays/scene.jpg").size == SCENE
    assert "images" in table


def test_a_second_run_keeps_masks_of_large_images(segmenter, photos, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "beit")
    given = {"out": tmp_path / "out", "tiling": TILING, "settings": SMALL}
    first = predict_masks(segmenter, str(photos), **given)
    written = (tmp_path / "out/masks/scene.tif").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(masks_module, "segment_tiles", None)
        assert predict_masks(segmenter, str(photos), **given) == first
    assert "2 images there already" in caplog.text
    assert (tmp_path / "out/masks/scene.tif").stat().st_mtime_ns == written
    predict_masks(segmenter, str(photos), overlays=True, **given)
    assert Image.open(tmp_path / "out/overlays/scene.jpg").size == SCENE
    with pytest.raises(InputError, match="made with other settings"):
        predict_masks(segmenter, str(photos), **given | {"tiling": Tiling(64)})
    tifffile.imwrite(tmp_path / "out/masks/scene.tif", np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match="was not written by beit predict"):
        predict_masks(segmenter, str(photos), **given)


def test_an_interrupted_large_mask_leaves_nothing_half_written(segmenter, photos, tmp_path, monkeypatch):
    def stopped(*arguments):
        yield next(segment_tiles(*arguments))
        raise KeyboardInterrupt

    given = {"out": tmp_path / "out", "tiling": TILING, "settings": SMALL}
    with monkeypatch.context() as patch, pytest.raises(ResumableStop):
        patch.setattr(masks_module, "segment_tiles", stopped)
        predict_masks(segmenter, str(photos / "scene.tif"), **given)
    assert not list((tmp_path / "out/masks").iterdir())
    predict_masks(segmenter, str(photos / "scene.tif"), **given)
    assert tifffile.imread(tmp_path / "out/masks/scene.tif").shape == SCENE[::-1]


def test_without_tiles_a_large_image_is_refused_with_the_way_out(segmenter, photos, tmp_path):
    with pytest.raises(InputError, match="none of the 1 images"):
        predict_masks(segmenter, str(photos / "scene.tif"), out=tmp_path / "out", settings=SMALL)


def test_options_are_checked_in_words(classifier, segmenter, tmp_path, caplog):
    assert tiling_of(classifier, None, 0) is None
    with pytest.raises(InputError, match=r"--overlap \(8\) is for tiles"):
        tiling_of(classifier, None, 8)
    with pytest.raises(InputError, match="smaller than tile"):
        tiling_of(classifier, 32, 32)
    assert tiling_of(classifier, 8, 0) == Tiling(8) and "smaller than the input of the model" in caplog.text
    with pytest.raises(InputError, match="leave one out"):
        check_mask_options(segmenter, tmp_path / "out", features=False, probabilities=True, tiling=TILING)
    assert USUAL.max_pixels == 64_000_000

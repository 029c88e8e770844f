"""Masks of new images: at their own size, the same as from Python, resumable, and nothing overwritten."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import beit
from beit.common.errors import InputError, ResumableStop
from beit.common.images.decode import decode_image
from beit.common.sources.config import SourceConfig
from beit.finetune.prediction import masks as module
from beit.finetune.prediction.masks import check_mask_options, predict_masks
from beit.finetune.prediction.predict import refuse_mask_options
from beit.tests.encoders import save_classifier, save_segmenter

NAMES = ("sky", "road", "tree")
SIZES = {"a.jpg": (40, 32), "sub/a.png": (7, 90), "sub/b.png": (1, 1), "legend.png": (33, 20)}


@pytest.fixture
def model(tmp_path):
    save_segmenter(tmp_path / "model", class_names=NAMES, micro_batch_size=2)
    return tmp_path / "model"


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def ids_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


def files_in(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_masks_are_as_large_as_their_images_and_those_of_python(tmp_path, model, photos):
    table = predict_masks(model, str(photos), out=tmp_path / "out", overlays=True, probabilities=True)
    loaded = beit.load_model(model, task="segmentation")
    total = np.zeros(3, np.int64)
    for name, (width, height) in SIZES.items():
        stem = name.rpartition(".")[0]
        ids = ids_of(tmp_path / "out/masks" / f"{stem}.png")
        found = loaded.predict(photos / name, probabilities=True)
        assert ids.shape == (height, width) and np.array_equal(ids, found.ids)
        assert Image.open(tmp_path / "out/overlays" / f"{stem}.jpg").size == (width, height)
        with np.load(tmp_path / "out/probabilities" / f"{stem}.npz") as stored:
            assert stored["probabilities"].shape == (height, width, 3)
            assert np.allclose(stored["probabilities"], found.probabilities.transpose(1, 2, 0), atol=1e-3)
            assert stored["class_names"].tolist() == list(NAMES)
        total += np.bincount(ids.ravel(), minlength=3)
    legend = json.loads((tmp_path / "out/legend.json").read_text())
    assert [entry["name"] for entry in legend["classes"]] == list(NAMES) and legend["ignored"] == 255
    assert (tmp_path / "out/legend.png").is_file() and (tmp_path / "out/masks/legend.png").is_file()
    largest = NAMES[int(total.argmax())]
    assert table.splitlines()[1].split()[1] == largest


def test_python_decodes_files_as_those_that_a_model_was_trained_on(tmp_path, photos):
    """With its own range and channels, as the command does; and the overlay shows what the model saw."""
    narrow = replace(SourceConfig(), range=(64, 128), channels="grey")
    save_segmenter(tmp_path / "model", class_names=NAMES)
    save_segmenter(tmp_path / "ranged", class_names=NAMES, decoding=narrow.decoding.of_any_size())
    predict_masks(tmp_path / "ranged", str(photos), out=tmp_path / "out", overlays=True)
    model = beit.load_model(tmp_path / "ranged", task="segmentation")
    for name in SIZES:
        found = model.predict(photos / name)
        assert np.array_equal(found.ids, ids_of(tmp_path / "out/masks" / f"{name.rpartition('.')[0]}.png"))
    other = beit.load_model(tmp_path / "model", task="segmentation")
    seen, usual = (one.predict(photos / "sub/a.png", probabilities=True) for one in (model, other))
    assert not np.allclose(usual.probabilities, seen.probabilities, atol=1e-3)
    shown, plain = (np.asarray(one.overlay(photos / "sub/a.png", opacity=0.0)) for one in (seen, usual))
    grey = np.asarray(decode_image((photos / "sub/a.png").read_bytes(), narrow.decoding))
    assert np.array_equal(shown, np.repeat(grey[..., None], 3, axis=-1)) and not np.array_equal(shown, plain)


def test_a_second_run_keeps_what_is_there_and_makes_what_is_missing(tmp_path, model, photos, caplog, monkeypatch):
    out = tmp_path / "out"
    caplog.set_level("INFO")
    table = predict_masks(model, str(photos), out=out)
    before = files_in(out)
    kept = (out / "masks/a.png").read_bytes()
    (out / "masks/a.png").unlink()
    calls = []
    real = module.class_ids
    monkeypatch.setattr(module, "class_ids", lambda *given: calls.append(1) or real(*given))
    assert predict_masks(model, str(photos), out=out) == table
    assert len(calls) == 1 and "3 images there already" in caplog.text
    after = files_in(out)
    assert {name for name in before if after[name] != before[name]} == {"masks/a.png"}
    assert (out / "masks/a.png").read_bytes() == kept
    # Overlays alone need no model, and an image that was replaced is done again.
    predict_masks(model, str(photos), out=out, overlays=True)
    assert len(calls) == 1 and len(list((out / "overlays").rglob("*.jpg"))) == 4
    Image.new("RGB", (5, 6), (255, 0, 0)).save(photos / "a.jpg")
    predict_masks(model, str(photos), out=out, overlays=True)
    assert len(calls) == 2 and ids_of(out / "masks/a.png").shape == (6, 5)
    assert Image.open(out / "overlays/a.jpg").size == (5, 6)


def test_masks_may_hold_the_values_of_the_data(tmp_path, model, photos):
    (tmp_path / "values.json").write_text(json.dumps({"7": "sky", "8": "road", "21": "tree"}))
    table = predict_masks(model, str(photos), out=tmp_path / "ids")
    given = {"out": tmp_path / "values", "values": str(tmp_path / "values.json")}
    assert predict_masks(model, str(photos), **given) == table
    for name in ("a", "sub/a"):
        ids, held = (ids_of(tmp_path / kind / f"masks/{name}.png") for kind in ("ids", "values"))
        assert np.array_equal(np.array([7, 8, 21], np.uint8)[ids], held)
    legend = json.loads((tmp_path / "values/legend.json").read_text())
    assert [entry["id"] for entry in legend["classes"]] == [7, 8, 21]
    assert predict_masks(model, str(photos), **given) == table  # what is there is counted by its values
    with pytest.raises(InputError, match="made with other settings"):
        predict_masks(model, str(photos), out=tmp_path / "values")


def test_an_interrupted_run_leaves_whole_files_only(tmp_path, model, photos, monkeypatch):
    out, real = tmp_path / "out", module.class_ids

    def interrupted(segmenter, pixels, settings):
        if pixels.shape[1:] == (1, 1):
            raise KeyboardInterrupt
        return real(segmenter, pixels, settings)

    monkeypatch.setattr(module, "class_ids", interrupted)
    with pytest.raises(ResumableStop, match=r"masks of \d of 4 images are kept, run the same command again to go on"):
        predict_masks(model, str(photos), out=out)
    assert not [path for path in out.rglob("*") if ".tmp." in path.name]
    monkeypatch.setattr(module, "class_ids", real)
    predict_masks(model, str(photos), out=out)
    assert len(list((out / "masks").rglob("*.png"))) == 4


def test_masks_of_somebody_else_are_not_replaced(tmp_path, model, photos):
    out = tmp_path / "out"
    predict_masks(model, str(photos), out=out)
    corrected = ids_of(out / "masks/a.png").copy()
    Image.fromarray(corrected).save(out / "masks/a.png")
    with pytest.raises(InputError, match=r"masks/a.png was not written by beit predict.*move it, or name another"):
        predict_masks(model, str(photos), out=out)
    assert ids_of(out / "masks/a.png").shape == corrected.shape
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files; name a new folder"):
        predict_masks(model, str(photos), out=tmp_path / "full")
    save_segmenter(tmp_path / "other", class_names=NAMES, seed=1)
    with pytest.raises(InputError, match="holds masks of another model"):
        predict_masks(tmp_path / "other", str(photos), out=out)


def test_a_damaged_mask_is_made_again_and_a_renumbered_one_is_not_counted(tmp_path, model, photos):
    out = tmp_path / "out"
    table, file = predict_masks(model, str(photos), out=out), out / "masks/a.png"
    whole, ids = file.read_bytes(), ids_of(file)
    file.write_bytes(whole[: whole.index(b"IDAT") + 6])  # our text stands before
    assert predict_masks(model, str(photos), out=out) == table and file.read_bytes() == whole
    text = PngInfo()
    text.add_text("beit-source", Image.open(file).info["beit-source"])
    palette = np.array(Image.open(file).getpalette()).reshape(256, 3)[::-1]  # as an optimiser may, which keeps texts
    again = Image.fromarray(255 - ids)
    again.putpalette(palette.astype(np.uint8).tobytes())
    again.save(file, pnginfo=text)
    with pytest.raises(InputError, match=r"masks/a.png was not written by beit predict, or was changed since"):
        predict_masks(model, str(photos), out=out)


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path, model, photos, caplog):
    (photos / "bad.jpg").write_bytes(b"no image")
    predict_masks(model, str(photos), out=tmp_path / "out")
    assert len(list((tmp_path / "out/masks").rglob("*.png"))) == 4
    assert "sample bad.jpg cannot be used: unsupported" in caplog.text
    assert "1 of 5 images skipped (1 unsupported)" in caplog.text
    with pytest.raises(InputError, match="none of the 1 images of .*bad.jpg can be read"):
        predict_masks(model, str(photos / "bad.jpg"), out=tmp_path / "none")


@pytest.mark.parametrize("out", ["photos/out", "photos/a.jpg", "photos/a.jpg/b", "model"])
def test_a_folder_among_what_is_read_is_refused(tmp_path, model, photos, out):
    before = files_in(tmp_path)
    with pytest.raises(InputError, match="--out"):
        predict_masks(model, str(photos), out=tmp_path / out)
    assert files_in(tmp_path) == before


def test_options_of_the_other_kind_are_refused_in_words(tmp_path, model):
    for out, wanted in [(None, "--out is missing"), (tmp_path / "x.csv", "x.csv is a table")]:
        with pytest.raises(InputError, match=f"{wanted}.*writes a mask for every image; name a folder"):
            check_mask_options(model, out, features=False)
    with pytest.raises(InputError, match="--features is for classifiers and encoders"):
        check_mask_options(model, tmp_path / "out", features=True)
    with pytest.raises(InputError, match="--overlays is for segmenters, and .* is none"):
        refuse_mask_options("model", overlays=True, probabilities=False)


def test_python_answers_in_arrays_and_pictures(tmp_path, model, photos):
    loaded = beit.load_model(model, task="segmentation")
    assert loaded.class_names == NAMES and len(loaded.colours) == 3 and not loaded.training
    found = loaded.predict(str(photos / "a.jpg"), probabilities=True)
    assert found.ids.dtype == np.uint8 and found.ids.shape == (32, 40) and found.ids.max() < 3
    assert found.probabilities.shape == (3, 32, 40) and np.allclose(found.probabilities.sum(0), 1, atol=1e-5)
    assert sum(found.shares.values()) == pytest.approx(1) and set(found.shares) <= set(NAMES)
    image = found.to_image()
    assert image.mode == "P" and np.array_equal(np.asarray(image), found.ids)
    assert found.overlay(photos / "a.jpg").size == (40, 32)
    with pytest.raises(ValueError, match="must be as large as the mask"):
        found.overlay(photos / "sub/b.png")
    several = loaded.predict([photos / "a.jpg", Image.new("RGB", (3, 5))])
    assert [one.ids.shape for one in several] == [(32, 40), (5, 3)] and several[0].probabilities is None
    assert np.array_equal(several[0].ids, found.ids)
    with pytest.raises(InputError, match="is a model of segmentation, not of classification"):
        beit.load_model(model, task="classification")
    save_classifier(tmp_path / "labels", class_names=("a", "b"))
    with pytest.raises(InputError, match="is a model of classification, not of segmentation"):
        beit.load_model(tmp_path / "labels", task="segmentation")

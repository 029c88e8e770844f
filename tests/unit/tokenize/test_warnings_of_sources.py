"""What tokenising and fine-tuning say of images before they begin."""

import logging

import numpy as np
import pytest
from PIL import Image

from beit.common.sources.config import SourceConfig
from beit.common.store import open_store
from beit.finetune.config import DataConfig
from beit.finetune.data import open_training_data
from beit.tests.support import write_tokenizer
from beit.tests.unit.common.images.test_alpha import encoded, icon
from beit.tests.unit.common.sources.test_glance import in_form, mask
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.images import open_images
from beit.tokenize.run import run_tokenize

ICONS = {f"{i}.png": encoded(icon((0, 0, 0), (250, 40 * i, 0))) for i in range(6)}


@pytest.fixture(autouse=True)
def messages(caplog):
    caplog.set_level(logging.WARNING)
    return caplog


def tokenised(folder, images, *, reading=None, **settings):
    config = TokenizeConfig(
        tokenizer=str(write_tokenizer(folder / "tokenizer")),
        views=1,
        img_size=16,
        patch_size=4,
        threads=1,
        workers=1,
        source=reading or SourceConfig(),
        **settings,
    )
    run_tokenize(config, images, folder / "store")
    return open_store(folder / "store")


def test_tokenising_warns_of_hidden_colours_once(tmp_path, messages):
    source = in_form(tmp_path, "folder", ICONS)
    tokenised(tmp_path, source)
    assert messages.text.count("6 of these hide colours") == 1
    tokenised(tmp_path, source)  # which is done, and is not looked at again
    assert messages.text.count("6 of these hide colours") == 1


@pytest.mark.parametrize("settings", [{}, {"short_side": 32}, {"short_side": 96}, {"materialize": True}], ids=str)
def test_a_store_shows_its_background(settings, tmp_path, messages):
    """Whether its images are packed as they are, shrunk, left at their size, or cut."""
    store = tokenised(tmp_path, in_form(tmp_path, "folder", ICONS), reading=SourceConfig(alpha="white"), **settings)
    assert "hide colours" not in messages.text
    assert store.info.source.alpha == "white"
    records = [store.read_record(*store.locate(position), 0) for position in range(len(store))]
    for record in records:  # crops are darker or lighter by their jitter, but nothing is black
        assert (np.asarray(record.decode_image()).max(axis=2) > 40).all()
    if settings.get("short_side") != 32 and not settings.get("materialize"):
        assert all((np.asarray(record.decode_image())[0, 0] >= 250).all() for record in records)


def test_tokenising_masks_is_said(tmp_path, messages):
    tokenised(tmp_path, in_form(tmp_path, "folder", {f"m/{i}.png": mask(i) for i in range(4)}))
    assert "masks by all appearance" in messages.text


def test_fine_tuning_warns_of_hidden_colours(tmp_path, messages, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    files = {f"{name}/{i}.png": data for name in ("cat", "dog") for i, data in enumerate(ICONS.values())}
    data = in_form(tmp_path, "folder", files)
    open_training_data(data, DataConfig(), reading=SourceConfig())
    assert "12 of these hide colours" in messages.text
    messages.clear()
    open_training_data(data, DataConfig(), reading=SourceConfig(alpha="checker"))
    assert not messages.records


def deep(number: int) -> bytes:
    values = np.random.default_rng(number).integers(200, 1500, (40, 40)).astype(np.uint16)
    return encoded(Image.fromarray(values))


@pytest.mark.parametrize("reading", [SourceConfig(), SourceConfig(range=(0.0, 4095.0))])
def test_whoever_opens_deep_images_is_told_that_their_range_lies_idle(tmp_path, messages, monkeypatch, reading):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    files = {f"{name}/{i}.png": deep(i + at) for at, name in ((0, "cat"), (9, "dog")) for i in range(6)}
    data = in_form(tmp_path, "folder", files)
    for opened in (
        lambda: open_training_data(data, DataConfig(), reading=reading),  # of trainings and probes alike
        lambda: open_images(data, img_size=32, cache_bytes=0, settings=reading),  # of reports and tokenizers
    ):
        messages.clear()
        opened()
        said = [message for message in messages.messages if "of 256 grey levels are left" in message]
        assert len(said) == (reading.range is None)


def test_a_report_of_words_says_what_hides_behind_transparency(tmp_path, messages, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    open_images(in_form(tmp_path, "folder", ICONS), img_size=32, cache_bytes=0)
    assert "6 of these hide colours" in messages.text


def test_masks_are_not_laid_on_a_background(tmp_path):
    from beit.finetune.masks.decode import read_values

    palette = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    palette.putpalette([10 * i for i in range(12)])
    plain, transparent = encoded(palette), encoded(palette, transparency=2)
    assert np.array_equal(read_values(plain).values, read_values(transparent).values)

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from beit.common.config import load_config
from beit.common.errors import InputError
from beit.common.forecast.hardware import named
from beit.common.tokenizers.dvae import DiscreteVAE
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.tests.support import write_images, write_store, write_tokenizer
from beit.tokenize import forecast
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.encoders import dvae_model
from beit.tokenize.forecast import store_bytes
from beit.tokenize.plan import plan_store
from beit.tokenize.run import run_tokenize

SMALL = ("img_size=16", "patch_size=4")


def config(*overrides, tokenizer="mini"):
    given = [f"tokenizer={tokenizer}", *SMALL, *overrides]
    return load_config(TokenizeConfig, recipe=None, overrides=given, recipe_dir=forecast.Path("none"))


@pytest.mark.parametrize("overrides", [("views=4",), ("views=0",), ("views=3", "materialize=true")])
def test_the_size_said_is_the_size_it_has(tmp_path, overrides):
    """Tars round up to 10 kB and shards have a table and a manifest, which small stores are mostly made of."""
    images = write_images(tmp_path / "images", 40, size=64)
    wanted = config(*overrides, tokenizer=write_tokenizer(tmp_path / "tokenizer"))
    said = store_bytes(plan_store(wanted, str(images), str(tmp_path / "store")), wanted)
    run_tokenize(wanted, str(images), tmp_path / "store")
    has = [sum(file.stat().st_size for file in (tmp_path / "store" / name).iterdir()) for name in ("images", "tokens")]
    for expected, found in zip(said, has, strict=True):
        assert expected == pytest.approx(found, rel=0.5, abs=45_000)


def test_a_store_that_the_disk_cannot_hold_is_refused_before_it_is_begun(tmp_path, monkeypatch):
    images = write_images(tmp_path / "images", 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"store .* needs about .*kB for tokens\), and its disk has 1.0 kB free; name"):
        run_tokenize(config(tokenizer=write_tokenizer(tmp_path / "tokenizer")), str(images), tmp_path / "store")
    assert not [path for path in tmp_path.rglob("store/*") if ".lock" not in path.name]


def test_a_finished_store_needs_no_room(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "beit")
    write_store(tmp_path, images=12)
    assert "/store: about " in caplog.text
    caplog.clear()
    monkeypatch.setattr(forecast, "_ROW_BYTES", 0)
    settings = config("views=3", "shard_size=16", "threads=1", "workers=1", tokenizer=tmp_path / "tokenizer")
    run_tokenize(settings, str(tmp_path / "images"), tmp_path / "store")
    assert "/store: about " not in caplog.text


def test_a_store_goes_on_with_its_own_tokenizer_only_which_is_named(tmp_path):
    write_store(tmp_path, images=12)
    settings = config("views=3", "shard_size=16", "threads=1", "workers=1")
    with pytest.raises(InputError, match=f"begun with tokenizer {tmp_path}/tokenizer .*, not mini .*use --tokenizer"):
        run_tokenize(settings, str(tmp_path / "images"), tmp_path / "store")


def test_a_store_is_foretold_by_what_is_known_of_it():
    settings = config("views=2", "short_side=96", "img_size=64", "patch_size=8")
    found = forecast.forecast(settings, num_images=600)
    assert found.total_bytes == pytest.approx(7.01e6, rel=0.05), "measured on 600 photographs"
    assert (found.num_shards, found.num_held_out) == (1, 64)
    assert found.seconds is not None and found.memory_bytes == pytest.approx(343e6, rel=0.1)
    dall_e = forecast.forecast(
        config("views=16", "img_size=224", "patch_size=16", tokenizer="dall-e"),
        num_images=14_000_000,
        hardware=named("A100", num_devices=64, num_machines=8),
        is_packed=False,
        num_shards=14_000,
    )
    assert dall_e.image_bytes == 0 and dall_e.token_bytes > 1e11 and dall_e.memory_bytes is None
    assert dall_e.seconds is not None and 1800 < dall_e.seconds < 36_000


def test_a_tokenizer_that_is_code_has_no_speed_and_does_not_prevent_a_forecast():
    found = forecast.forecast(config("views=2", tokenizer="module:Class"), num_images=10)
    assert found.seconds is None and found.memory_bytes is None and found.total_bytes > 0


@pytest.mark.parametrize(
    "changes", [{}, {"downsampling": 4}, {"downsampling": 16, "width": 64}, {"reconstruction": "logit_laplace"}]
)
def test_a_dvae_is_counted_exactly(changes):
    shape = DiscreteVAEConfig(vocab_size=64, num_blocks=2, **changes)
    counted = dvae_model(shape, crop_size=64, crops_per_image=2)
    assert counted.parameters == sum(weight.numel() for weight in DiscreteVAE(shape).parameters())


def test_memory_that_cannot_be_enough_is_refused_unless_told_otherwise(tmp_path, monkeypatch, caplog):
    images = write_images(tmp_path / "images", 4)
    monkeypatch.setattr(forecast, "free_machine_bytes", lambda: 10**8)
    settings = config("views=2", tokenizer=write_tokenizer(tmp_path / "tokenizer"))
    with pytest.raises(InputError, match=r"^tokenising needs about .* of memory, and 100 MB are free; .* to go on reg"):
        run_tokenize(settings, str(images), tmp_path / "store")
    run_tokenize(replace(settings, allow_shortage=True), str(images), tmp_path / "store")
    assert "tokenising needs about" in caplog.text


def test_cutting_large_images_takes_the_memory_of_the_part_that_is_decoded_at_once():
    settings = config("views=2", "tile=512", "img_size=64", "patch_size=8", "materialize=true", "workers=2")
    small, large = (
        forecast.forecast(settings, num_images=320, megapixels=0.26, pixels_at_once=pixels)
        for pixels in (0, 20_000_000)
    )
    assert large.memory_bytes == pytest.approx(695e6, rel=0.15), "measured: two photographs of 5000 x 4000 px at once"
    assert small.memory_bytes < 400e6


def test_what_is_refused_is_refused_before_anything_is_expected(tmp_path, caplog):
    images = write_images(tmp_path / "images", 4)
    with caplog.at_level("INFO"):
        with pytest.raises(InputError, match="is neither a path nor one of"):
            run_tokenize(config("views=2", tokenizer="MISSING"), str(images), tmp_path / "store")
        run_tokenize(config("views=2", tokenizer=write_tokenizer(tmp_path / "words")), str(images), tmp_path / "store")
        assert sum(line.startswith("expected: ") for line in caplog.messages) == 1
        with pytest.raises(InputError, match="differs from that of store"):
            run_tokenize(config("views=3", tokenizer=str(tmp_path / "words")), str(images), tmp_path / "store")
    assert sum(line.startswith("expected: ") for line in caplog.messages) == 1

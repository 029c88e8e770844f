import shutil
from types import SimpleNamespace

import pytest

from beit.common.config import load_config
from beit.common.errors import InputError
from beit.tests.support import write_images, write_store, write_tokenizer
from beit.tokenize import forecast
from beit.tokenize.config import TokenizeConfig
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

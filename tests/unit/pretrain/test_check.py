"""`beit pretrain --check` refuses what the run would refuse, its directory too, and writes nothing."""

import re
import shutil
from pathlib import Path

import pytest

from beit.common.config import load_config
from beit.common.errors import InputError
from beit.pretrain.commands import RECIPES
from beit.pretrain.config import PretrainConfig
from beit.pretrain.train import check, run
from beit.tests.continued import settings
from beit.tests.support import files_of, write_store
from beit.tests.unit.pretrain.test_train import make_config


def refused(work):
    with pytest.raises(InputError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("s3:/bucket/run", "is an address"),
        ("file", "is a file; name a new directory"),
        ("file/run", "is a file, in which no folder can be"),
        ("other", "not empty and not a run"),
        ("first", "holds a run with other settings .*optimizer.lr was "),
        ("tokenizer", "holds a run with other settings that its checkpoints depend on .*model.depth was None, is 2"),
    ],
)
def test_a_directory_that_the_run_would_not_take_is_refused_with_the_same_words(
    store, first, tmp_path, monkeypatch, name, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("")
    shutil.copytree(first, tmp_path / "first")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/config.toml").write_text("vocab_size = 512\n")
    before = files_of(tmp_path)
    shape = {"size": "tiny", "embed_dim": 16, "depth": 2, "num_heads": 2}
    config = settings(model=shape, optimizer={"lr": 0.5, "warmup_steps": 1})
    words = refused(lambda: check(config, store=str(store.location), run_dir=Path(name)))
    assert words == refused(lambda: run(config, store=store.location, run_dir=Path(name)))
    assert re.search(said, words), words
    assert files_of(tmp_path) == before


def test_a_run_that_may_go_on_passes_and_one_whose_copy_is_another_does_not(store, first, dino, tmp_path):
    shape = {"size": "tiny", "embed_dim": 16, "depth": 2, "num_heads": 2}
    config = settings(model=shape, optimizer={"warmup_steps": 1})
    place = str(store.location)
    before = files_of(first)
    right, *expected = check(config, store=place, run_dir=first).splitlines()
    assert right == f"the settings are right for {place}"
    assert " of memory, in micro-batches of " in expected[0] and " of disk (checkpoints of " in expected[1]
    assert "already holds a run" in refused(lambda: check(config, store=place, run_dir=first, resume="never"))
    copied = settings(dino, run={"sync_to": str(first)})  # pixels of its own: lists among what differs
    words = refused(lambda: check(copied, store=place, run_dir=tmp_path / "run"))
    assert "holds a run with other settings" in words and "is [0.1, 0.2, 0.3]" in words
    assert files_of(first) == before and not (tmp_path / "run").exists()


def test_a_directory_is_looked_at_before_there_is_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is an address" in refused(lambda: check(settings(), store="none", run_dir=Path("s3:/bucket/run")))
    assert check(settings(), store="none", run_dir=Path("run")) == "the settings are right; none is not there yet"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimizer": {"kind": "muon"}, "deepspeed": {"zero_stage": 2}}, "needs whole matrices"),
        ({"speed": {"compile": True}, "deepspeed": {"zero_stage": 3}}, "speed.compile has no use with"),
        ({"deepspeed": {"config": "zero.json"}}, "zero.json sets zero_optimization.stage to 7"),
        ({"deepspeed": {"config": "none.json"}}, "none.json. cannot be read"),
    ],
)
def test_optimizer_and_partition_are_looked_at_without_a_store(sections, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 7}}')
    with pytest.raises(InputError, match=message):
        check(make_config(**sections), store="store", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_block_to_aggregate_from_is_looked_for_in_the_model(tmp_path):
    store = write_store(tmp_path / "store")
    config = make_config(objective={"aggregate": 2, "aggregate_from": 24})
    with pytest.raises(InputError, match=r"objective.aggregate_from \(24\) must be in"):
        check(config, store=str(store.location), run_dir=tmp_path / "run")
    config = make_config(objective={"aggregate": 2, "aggregate_from": 1})
    assert "are right" in check(config, store=str(store.location), run_dir=tmp_path / "run")


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("overrides", "lr"), [([], "0.002"), (["optimizer.lr=3e-4"], "0.00015"), (["optimizer.lr=1e-5"], "1e-05")]
)
def test_a_recipe_for_muon_names_all_that_makes_it_one_for_partitions(tmp_path, stage, overrides, lr):
    def load(*more):
        recipe = {"recipe": "beit_tiny_patch4_32", "recipe_dir": RECIPES}
        return load_config(PretrainConfig, overrides=[*overrides, f"deepspeed.zero_stage={stage}", *more], **recipe)

    words = refused(lambda: check(load(), store="store", run_dir=tmp_path / "run"))
    way_out = f"--set optimizer.kind=adamw --set optimizer.lr={lr}"
    assert words.endswith(way_out)
    followed = load(*way_out.replace("--set ", "").split())
    assert "are right" in check(followed, store="store", run_dir=tmp_path / "run")

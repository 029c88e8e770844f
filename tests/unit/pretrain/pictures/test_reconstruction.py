"""What `beit show` draws of a pre-training run, and the batches it builds again."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from beit.cli import beit
from beit.common.config import config_from_dict, config_to_toml
from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.processes.distributed import World
from beit.pretrain.config import PretrainConfig
from beit.pretrain.pictures.batch import VIEW_FIELDS, batch_sheet, rebuild_batch
from beit.pretrain.pictures.reconstruction import build_reconstruction, reconstruction_sheet
from beit.pretrain.sample import EvenSample
from beit.pretrain.store_dataset import StoreDataset
from beit.pretrain.stored_run import open_stored_run, record_data
from beit.pretrain.train import PretrainTask, run
from beit.tests.support import write_bare_store, write_store, write_tokenizer

SETTINGS = {
    "model": {"size": "tiny", "embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path": 0.0},
    "train": {"steps": 40, "global_batch_size": 8, "precision": "fp32"},
    "optimizer": {"warmup_steps": 1},
    "reader": {"num_workers": 0},
    "held_out": {"train_images": 8, "pictures": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def store(folder):
    return write_store(folder)


@pytest.fixture(scope="module")
def bare_store(folder):
    return write_bare_store(folder)


def make_config(**sections):
    merged = {name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in {*SETTINGS, *sections}}
    return config_from_dict(PretrainConfig, merged)


def world_of(rank, world_size):
    return World(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))


def begin_run(path, store, config, *, world_size=1):
    """Leave what a run has when its first step goes wrong: settings and data, neither checkpoint nor encoder."""
    path.mkdir()
    (path / "config.toml").write_text(config_to_toml(config))
    tasks = [PretrainTask(config, store, world_of(rank, world_size)) for rank in range(world_size)]
    record_data(path, store, tasks[0].data.state(0))
    return tasks


def step_of(task, step):
    """Return the micro-batches of one step of a rank."""
    wanted = task.data.plan.grad_accum_steps
    return [batch for _, batch in zip(range(wanted), task.data.micro_batches(step), strict=False)]


@pytest.mark.parametrize("step", [0, 9, 39])
def test_a_rebuilt_batch_is_what_two_ranks_consumed(store, tmp_path, step):
    config = make_config(train={"micro_batch_size": 2})
    tasks = begin_run(tmp_path / "run", store, config, world_size=2)
    consumed = [batch for task in tasks for batch in step_of(task, step)]
    built = rebuild_batch(open_stored_run(tmp_path / "run", None), step, num_pictures=5)
    rows = built.listing["rows"]
    for name, found in (("sample_ids", "sample_id"), ("view_indices", "view_index"), ("epochs", "epoch")):
        assert [row[found] for row in rows] == [value for batch in consumed for value in batch[name]]
    masks = torch.cat([batch["bool_masked_pos"] for batch in consumed])
    assert [row["masked"] for row in rows] == [np.flatnonzero(mask).tolist() for mask in masks.numpy()]
    tokens = torch.cat([batch["token_ids"] for batch in consumed])
    assert [row["token_ids"] for row in rows] == tokens.tolist()
    images = torch.cat([batch["images"] for batch in consumed]).permute(0, 2, 3, 1).numpy()
    assert len(built.pictures) == 5
    assert all(np.array_equal(shown, seen) for shown, seen in zip(built.pictures, images, strict=False))
    assert batch_sheet(built).width > 5 * 100


def test_the_batch_of_a_step_that_was_not_finite_is_the_recorded_one(store, tmp_path):
    tasks = begin_run(tmp_path / "run", store, make_config(train={"micro_batch_size": 4}), world_size=2)
    ids = [[one for batch in step_of(task, 3) for one in batch["sample_ids"]] for task in tasks]
    record = tmp_path / "run/nonfinite.jsonl"
    record.write_text(json.dumps({"step": 3, "sample_ids": ids}) + "\n" + '{"step": 4, "sam')  # cut by a crash
    opened = open_stored_run(tmp_path / "run", None)
    assert rebuild_batch(opened, 3, num_pictures=1).listing["is_nonfinite"] is True
    assert rebuild_batch(opened, 2, num_pictures=1).listing["is_nonfinite"] is False
    record.write_text(json.dumps({"step": 3, "sample_ids": ids[::-1]}) + "\n")
    with pytest.raises(InputError, match="samples of step 3 are not those that .*nonfinite.jsonl records"):
        rebuild_batch(opened, 3, num_pictures=1)


def test_a_batch_of_fresh_views_is_rebuilt_without_the_tokenizer(folder, bare_store, tmp_path):
    config = make_config(tokenizer={"online": str(write_tokenizer(folder / "online"))})
    (task,) = begin_run(tmp_path / "run", bare_store, config)
    shutil.rmtree(folder / "online")
    (seen,) = step_of(task, 11)
    built = rebuild_batch(open_stored_run(tmp_path / "run", None), 11, num_pictures=8)
    assert all(
        np.array_equal(shown, image.permute(1, 2, 0).numpy())
        for shown, image in zip(built.pictures, seen["images"], strict=True)
    )
    row = built.listing["rows"][0]
    assert row["token_ids"] is None
    place = task.data.order.rows(11 * 8, 1)
    record = task.dataset.fetch(int(place.shard_ids[0]), int(place.ranks[0]), 1)
    image = decode_image(record.image_bytes)
    drawn = task.transform().view_of(record, image.width, image.height)
    assert (row["epoch"], row["view"]) == (1, {name: int(drawn[name]) for name in VIEW_FIELDS})


def test_steps_are_bounded_and_a_store_may_move_but_not_change(store, bare_store, tmp_path):
    begin_run(tmp_path / "run", store, make_config())
    with pytest.raises(InputError, match=r"--step \(40\) must be in \[0, 39\]"):
        rebuild_batch(open_stored_run(tmp_path / "run", None), 40, num_pictures=1)
    moved = tmp_path / "moved"
    shutil.copytree(store.location, moved)
    here = open_stored_run(tmp_path / "run", str(moved))
    there = open_stored_run(tmp_path / "run", None)
    lists = [rebuild_batch(opened, 5, num_pictures=1).listing["rows"] for opened in (here, there)]
    assert lists[0] == lists[1]
    with pytest.raises(InputError, match="is not the store of .*run"):
        open_stored_run(tmp_path / "run", bare_store.location)
    (tmp_path / "run/data.json").unlink()
    with pytest.raises(InputError, match="does not say which store .* name it with --store"):
        open_stored_run(tmp_path / "run", None)
    with pytest.raises(InputError, match="is not a run of beit pretrain"):
        open_stored_run(tmp_path, None)


def test_evaluations_draw_what_show_reconstruction_draws_and_the_report_shows_it(store, tmp_path, with_reports):
    config = make_config(train={"steps": 4, "eval_interval_steps": 2})
    run(config, store=store.location, run_dir=tmp_path / "run")
    page = (tmp_path / "run/report.html").read_text()
    for heading in ("Masked images, completed", "Attention of block 1", "Masks: blockwise"):
        assert heading in page
    assert {path.name for path in (tmp_path / "run/pictures").iterdir()} == {
        *("attention.png", "words.png", "masks.png", "reconstruction-step-2.png", "reconstruction-step-4.png"),
    }
    drawn = Image.open(tmp_path / "run/reconstruction.png")
    shown = reconstruction_sheet(tmp_path / "run", store=None, tokenizer=None, num_images=3)
    assert np.array_equal(np.asarray(drawn), np.asarray(shown))
    board = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in board.Images("reconstruction")] == [2, 4]


@pytest.mark.parametrize("sections", [{"objective": {"kind": "masked_pixels"}}, {"mask": {"mode": "none"}}])
def test_other_objectives_are_drawn_too(store, tmp_path, sections):
    if "mask" in sections:
        sections["objective"] = {"kind": "all_tokens"}
    run(make_config(train={"steps": 2}, **sections), store=store.location, run_dir=tmp_path / "run")
    drawn = Image.open(tmp_path / "run/reconstruction.png")
    shown = reconstruction_sheet(tmp_path / "run", store=None, tokenizer=None, num_images=3)
    assert np.array_equal(np.asarray(drawn), np.asarray(shown))


def test_no_picture_is_drawn_without_a_tokenizer_or_if_none_is_wanted(store, tmp_path):
    moved = tmp_path / "store"
    shutil.copytree(store.location, moved)
    info = json.loads((moved / "store.json").read_text())
    info["tokenizer"]["name"] = str(tmp_path / "gone")
    (moved / "store.json").write_text(json.dumps(info))
    run(make_config(train={"steps": 1}), store=moved, run_dir=tmp_path / "a")
    run(make_config(train={"steps": 1}, held_out={"pictures": 0}), store=store.location, run_dir=tmp_path / "b")
    assert not list(tmp_path.glob("*/reconstruction.png"))


def test_images_that_cannot_be_read_cost_pictures_and_not_the_run(store, tmp_path, monkeypatch):
    fetch = StoreDataset.fetch
    unreadable = set()

    def damaged(self, shard_id, rank, epoch):
        if self.sample_id(shard_id, rank) in unreadable:
            raise BadSample("truncated", "cut")
        return fetch(self, shard_id, rank, epoch)

    monkeypatch.setattr(StoreDataset, "fetch", damaged)
    config = make_config(train={"steps": 1}, reader={"bad_sample_budget": 0.5})
    held_out = StoreDataset(store, seed=0, held_out=True)
    places = EvenSample(held_out, 3).places().tolist()
    unreadable.add(held_out.sample_id(*places[0]))
    assert len(build_reconstruction(store, config, None, num_images=3).images) == 2
    unreadable |= {held_out.sample_id(*place) for place in places}
    with pytest.raises(InputError, match="none of 3 held-out images of .* can be drawn"):
        build_reconstruction(store, config, None, num_images=3)
    run(config, store=store.location, run_dir=tmp_path / "run")
    assert not (tmp_path / "run/reconstruction.png").exists()


def test_masks_are_drawn_of_a_run_and_of_a_store(store, bare_store, tmp_path):
    begin_run(tmp_path / "run", store, make_config(mask={"mode": "algorithm1"}))
    cases = [
        [str(tmp_path / "run")],
        [bare_store.location, "--set", "mask.mode=random"],
        [store.location, "--set", "mask.mode=none", "--set", "objective.kind=all_tokens"],
    ]
    for number, words in enumerate(cases):
        out = tmp_path / f"{number}.png"
        result = CliRunner().invoke(beit, ["show", "masks", *words, "--rows", "2", "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert Image.open(out).width > 500
    result = CliRunner().invoke(
        beit, ["show", "masks", str(tmp_path / "run"), "--set", "mask.mode=none", "--out", str(tmp_path / "x.png")]
    )
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "x.png").exists()


def test_show_batch_writes_a_picture_and_a_listing(store, tmp_path):
    begin_run(tmp_path / "run", store, make_config())
    words = [str(tmp_path / "run"), "--step", "7", "--out", str(tmp_path / "b.png"), "--json", str(tmp_path / "b.json")]
    result = CliRunner().invoke(beit, ["show", "batch", *words])
    assert result.exit_code == 0, result.output
    listing = json.loads((tmp_path / "b.json").read_text())
    assert (listing["step"], len(listing["rows"])) == (7, 8)
    assert Image.open(tmp_path / "b.png").width > 500

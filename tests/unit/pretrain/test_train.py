import json
import os
import signal
import threading

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from beit.common.config import config_from_dict
from beit.common.encoder import load_encoder, read_encoder_config, read_encoder_state
from beit.common.errors import InputError, ResumableStop
from beit.common.processes.distributed import World
from beit.common.runs.metrics import read_metrics
from beit.pretrain.config import PretrainConfig
from beit.pretrain.train import PretrainTask, run
from beit.tests.support import VOCAB_SIZE, files_of, write_store

SETTINGS = {
    "model": {"size": "tiny", "embed_dim": 16, "depth": 2, "num_heads": 2},
    "train": {"steps": 6, "global_batch_size": 8, "precision": "fp32", "log_interval_steps": 1},
    "optimizer": {"warmup_steps": 2},
    "checkpoint": {"interval_steps": 2},
    "reader": {"num_workers": 0},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"))


def make_config(**sections):
    merged = {name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in {*SETTINGS, *sections}}
    return config_from_dict(PretrainConfig, merged)


def test_a_full_disk_under_the_encoder_is_survived_once(store, tmp_path, monkeypatch, caplog):
    """safetensors has an error of its own for it."""
    failures = iter([SafetensorError("I/O error: No space left on device (os error 28)")])
    save_file = safetensors.torch.save_file

    def fill_disk_once(*args, **options):
        for error in failures:
            raise error
        save_file(*args, **options)

    monkeypatch.setattr("safetensors.torch.save_file", fill_disk_once)
    run(make_config(), store=store.location, run_dir=tmp_path / "run")
    assert "checkpoint at step 2 failed" in caplog.text and "training goes on" in caplog.text
    assert load_encoder(tmp_path / "run").provenance["step"] == 6


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_activation_checkpointing_changes_no_weight(store, tmp_path, zero_stage):
    for name, on in (("plain", False), ("recomputed", True)):
        config = make_config(
            speed={"activation_checkpointing": on}, deepspeed={"zero_stage": zero_stage}, held_out={"train_images": 0}
        )
        run(config, store=store.location, run_dir=tmp_path / name)
    plain, recomputed = (read_encoder_state(tmp_path / name) for name in ("plain", "recomputed"))
    assert not [name for name, tensor in plain.items() if not torch.equal(tensor, recomputed[name])]


def test_records_say_how_well_the_device_is_used(store, tmp_path):
    config = make_config(speed={"peak_tflops": 0.001})
    run(config, store=store.location, run_dir=tmp_path / "run")
    records = [record for record in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in record]
    world = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    flops = PretrainTask(config, store, world).flops_per_sample()
    assert len(records) == 6
    for record in records:
        assert record["mfu"] == pytest.approx(record["images_per_second"] * flops / 1e9, abs=1e-3)
        assert 0 <= record["data_wait"] <= 1
        assert record["peak_memory_bytes"] > 50e6  # torch alone takes more


def test_what_the_settings_do_not_fit_is_one_line_each(store, tmp_path, caplog):
    info = store.info
    begin = dict.fromkeys(
        ("train.global_batch_size (100)", f"this store has {info.img_size} px in {info.patch_size} px")
    )

    def warned(name, **sections):
        caplog.clear()
        run(make_config(**sections, held_out={"train_images": 0}), store=store.location, run_dir=tmp_path / name)
        return [line for line in caplog.messages if any(words in line for words in begin)]

    many = {"train": {"global_batch_size": 100, "steps": 1}, "optimizer": {"warmup_steps": 0}}
    first, second = warned("other", **many)
    assert first.startswith("train.global_batch_size (100) is more than the ")
    assert first.endswith("take a smaller one: --set train.global_batch_size=8 --set optimizer.lr=0.0004")
    assert second.startswith("these settings are made for views of 224 px in patches of 16 px, this store has ")
    assert warned("fits", data={"made_for": [info.img_size, info.patch_size]}) == []


def consumed(store, *, world_size, micro_batch_size, num_workers=0, num_steps=6):
    """Return what each step consumes over all ranks: sample, view, mask and tokens per row, in order."""
    steps = [[] for _ in range(num_steps)]
    for rank in range(world_size):
        world = World(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
        reader = {"num_workers": num_workers}
        config = make_config(train={"micro_batch_size": micro_batch_size}, reader=reader)
        task = PretrainTask(config, store, world)
        for index, batch in enumerate(task.data.micro_batches(0)):
            rows = zip(batch["sample_ids"], batch["view_indices"], batch["epochs"], strict=True)
            steps[index // task.data.plan.grad_accum_steps] += [
                (*row, mask.numpy().tobytes(), ids.numpy().tobytes())
                for row, mask, ids in zip(rows, batch["bool_masked_pos"], batch["token_ids"], strict=True)
            ]
    return steps


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, 4), (4, 2), (1, 4), (2, 2)])
def test_ranks_together_consume_exactly_what_one_rank_does(store, world_size, micro_batch_size):
    alone = consumed(store, world_size=1, micro_batch_size=8)
    together = consumed(store, world_size=world_size, micro_batch_size=micro_batch_size)
    assert [len(step) for step in alone] == [8] * 6
    if world_size == 1 or micro_batch_size == 8 // world_size:
        assert together == alone
    assert [sorted(step) for step in together] == [sorted(step) for step in alone]


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 3), (2, 1)])
def test_workers_change_nothing(store, world_size, num_workers):
    alone = consumed(store, world_size=1, micro_batch_size=8)
    shared = consumed(store, world_size=world_size, micro_batch_size=2, num_workers=num_workers)
    assert [sorted(step) for step in shared] == [sorted(step) for step in alone]


@pytest.mark.parametrize(
    "sections",
    [{}, {"optimizer": {"kind": "muon"}, "train": {"ema_decay": 0.9, "micro_batch_size": 4}}],
    ids=["adamw", "muon"],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(sections, store, tmp_path):
    config = make_config(**sections)
    run(config, store=store.location, run_dir=tmp_path / "whole")
    with pytest.raises(ResumableStop, match="stopped at step"):
        stop_after_first_log(config, store, tmp_path / "parts")
    run(config, store=store.location, run_dir=tmp_path / "parts")
    whole, parts = (read_encoder_state(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    losses = [
        [record["loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in record]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def stop_after_first_log(config, store, path):
    """Run until metrics.jsonl has a line, then send this process the signal a scheduler would send."""
    finished = threading.Event()

    def watch():
        while not finished.wait(0.005):
            if read_metrics(path / "metrics.jsonl"):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run(config, store=store.location, run_dir=path)
    finally:
        finished.set()
        watcher.join()


def test_the_encoder_says_where_it_comes_from_and_loads_without_the_run(store, tmp_path):
    run(make_config(train={"steps": 2}), store=store.location, run_dir=tmp_path / "run")
    config = read_encoder_config(tmp_path / "run/encoder")
    assert config.vocab_size == VOCAB_SIZE
    assert config.provenance["store_sha256"] == store.index_sha256
    assert config.provenance["step"] == 2
    hidden = load_encoder(tmp_path / "run/encoder").forward_features(torch.zeros(1, 3, 16, 16))
    assert hidden.shape == (1, 17, 16)
    state = read_encoder_state(tmp_path / "run/encoder")
    assert {"mask_token", "norm.weight", "lm_head.weight", "rel_pos_bias.relative_position_bias_table"} <= set(state)


def test_a_run_directory_with_other_settings_is_refused(store, tmp_path):
    run(make_config(train={"steps": 2}), store=store.location, run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="optimizer.lr was 0.0015, is 0.001"):
        run(make_config(train={"steps": 2}, optimizer={"lr": 1e-3}), store=store.location, run_dir=tmp_path / "run")


def test_other_data_are_refused_on_resume(store, tmp_path):
    config = make_config(train={"steps": 2})
    run(config, store=store.location, run_dir=tmp_path / "run")
    other = write_store(tmp_path / "other", images=61)
    with pytest.raises(InputError, match="data was .*, is "):
        run(config, store=other.location, run_dir=tmp_path / "run")


def test_a_run_that_is_refused_for_its_data_is_left_as_it_was_and_nothing_is_built(store, tmp_path, monkeypatch):
    run(make_config(train={"steps": 2}), store=store.location, run_dir=tmp_path / "run")
    before = files_of(tmp_path / "run")
    other = write_store(tmp_path / "other", images=61)
    monkeypatch.setattr("beit.pretrain.train.build_model", lambda *_: pytest.fail("the model was built"))
    changed = make_config(
        train={"steps": 2, "log_interval_steps": 2}
    )  # free to change, and so written where it goes on
    with pytest.raises(InputError, match="data was .*, is "):
        run(changed, store=other.location, run_dir=tmp_path / "run")
    assert files_of(tmp_path / "run") == before
    assert json.loads(before["data.json"])["store_sha256"] == store.index_sha256


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a token store"):
        run(make_config(), store=tmp_path, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_ranks_cannot_share_is_refused_with_the_sizes_that_can(store):
    world = World(rank=0, local_rank=0, world_size=3, device=torch.device("cpu"))
    with pytest.raises(InputError, match="3 ranks"):
        PretrainTask(make_config(train={"micro_batch_size": 4}), store, world)

"""A store behind a server trains as the local one does: the same batches, the same losses, the same errors."""

import itertools
import os
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from beit.common.config import config_from_dict
from beit.common.errors import InputError, RunFailed
from beit.common.processes.distributed import World
from beit.common.reading.batch_plan import BatchPlan
from beit.common.reading.config import ReaderConfig
from beit.common.reading.dataset import build_order
from beit.common.reading.reader import build_loader
from beit.common.runs.metrics import read_metrics
from beit.common.shards.cache import ShardCache
from beit.common.shards.checks import check_image_tars
from beit.common.storage.place import RemoteError
from beit.common.store import open_store
from beit.pretrain.commands import pretrain_command
from beit.pretrain.config import PretrainConfig
from beit.pretrain.train import PretrainTask, check_store
from beit.tests import fake_dataset
from beit.tests.file_server import serve
from beit.tests.impatience import hurry
from beit.tests.served_folder import serve_folder, web_server
from beit.tests.support import write_store

BATCH, STEPS = 8, 4  # 24 training images: more than an epoch
EXACT = ("loss", "mim_acc", "lr", "grad_norm", "held_out_bits", "unigram_bits", "held_out_acc", "train_bits")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_store(folder, images=30, shard_size=4)  # 8 shards
    return folder


def config_of(**reader):
    sections = {
        "model": {"size": "tiny", "embed_dim": 16, "depth": 1, "num_heads": 2},
        "train": {"steps": STEPS, "global_batch_size": BATCH, "micro_batch_size": 4},
        "reader": {"window_shards": 2, "num_workers": 0, **reader},
    }
    return config_from_dict(PretrainConfig, sections)


def task_of(store, **reader):
    world = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    return PretrainTask(config_of(**reader), store, world)


def rows_of(batches):
    """Everything that a batch holds, row by row."""
    names = ("sample_ids", "view_indices", "epochs", "positions")
    return [
        (*row, images.numpy().tobytes(), ids.tolist(), mask.tolist())
        for batch in batches
        for *row, images, ids, mask in zip(
            *(batch[name] for name in names), batch["images"], batch["token_ids"], batch["bool_masked_pos"], strict=True
        )
    ]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scheme", ["http", pytest.param("s3", marks=pytest.mark.slow)])
def test_batches_of_a_remote_store_equal_the_local_ones(made, tmp_path, scheme, num_workers):
    """Keys, views, masks, tokens and pixels, while the cache fills and is too small for all shards."""
    expected = rows_of(task_of(open_store(made / "store"), lanes=2).data.micro_batches(0))
    with serve_folder(made, scheme) as url:
        store = open_store(f"{url}/store")
        check_store(store, config_of())
        image_bytes = max(row.image_bytes + row.token_bytes for row in store.shards)
        store.use_cache(ShardCache(tmp_path, 3 * image_bytes))
        task = task_of(store, lanes=2, num_workers=num_workers)
        assert rows_of(task.data.micro_batches(0)) == expected
        assert rows_of(task.data.micro_batches(3)) == expected[3 * BATCH :]
    assert len(expected) == BATCH * STEPS
    assert list(tmp_path.glob("*.tar"))


def test_without_a_cache_a_micro_batch_is_asked_for_in_one_go(made):
    expected = rows_of(itertools.islice(task_of(open_store(made / "store")).data.micro_batches(0), 2))
    with serve(web_server(made)) as server:
        store = open_store(f"{server.url}/store")
        assert rows_of(itertools.islice(task_of(store, lanes=1).data.micro_batches(0), 2)) == expected
        ahead = []
        store._remote.read_ahead = lambda ranges: ahead.append(list(ranges))
        next(iter(task_of(store, lanes=1).data.micro_batches(0)))
        assert {len(ranges) for ranges in ahead} == {3 * 4}  # image, tokens and view of four samples


def test_remote_stores_are_read_in_lanes_and_a_run_keeps_its_own(made, caplog):
    local = task_of(open_store(made / "store"))
    with serve(web_server(made)) as server:
        remote = task_of(open_store(f"{server.url}/store"))
        assert (local.data.order.lanes, remote.data.order.lanes) == (1, 8)
        state = local.data.state(2)
        expected = rows_of(local.data.micro_batches(2))
        remote.data.check_resume(state)
        assert remote.data.order.lanes == 1
        assert rows_of(remote.data.micro_batches(2)) == expected
        with pytest.raises(InputError, match="lanes was 1, is 4"):
            task_of(open_store(f"{server.url}/store"), lanes=4).data.check_resume(state)


def pretrain(store, run, *settings):
    """Run `beit pretrain` for three steps and return the numbers that must not depend on where the store is."""
    defaults = ("model.size=tiny", "model.embed_dim=16", "model.depth=1", "model.num_heads=2", "train.steps=3")
    defaults += ("train.global_batch_size=8", "train.log_interval_steps=1", "train.precision=fp32", "reader.lanes=2")
    options = itertools.chain.from_iterable(("--set", setting) for setting in (*defaults, *settings))
    result = CliRunner().invoke(pretrain_command, [str(store), str(run), *options], catch_exceptions=False)
    assert result.exit_code == 0
    return [{name: record[name] for name in EXACT if name in record} for record in read_metrics(run / "metrics.jsonl")]


@pytest.mark.slow
def test_beit_pretrain_takes_a_url_and_gives_the_same_numbers(made, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    expected = pretrain(made / "store", tmp_path / "local")
    assert any("held_out_bits" in record for record in expected) and any("loss" in record for record in expected)
    with serve_folder(made, "s3") as url:
        assert pretrain(f"{url}/store", tmp_path / "s3") == expected
    with serve(web_server(made)) as server:
        server.statuses = [503] * 3  # retried
        assert pretrain(f"{server.url}/store/", tmp_path / "http", "reader.num_workers=0") == expected
    assert list((tmp_path / "cache/shards").glob("*.tar"))


def test_a_server_that_fails_now_and_then_changes_nothing(made, tmp_path, monkeypatch):
    hurry(monkeypatch)
    expected = rows_of(task_of(open_store(made / "store"), lanes=2).data.micro_batches(0))
    with serve(web_server(made)) as server:
        store = open_store(f"{server.url}/store")
        store.use_cache(ShardCache(tmp_path, 10**8))
        batches = []
        for batch in task_of(store, lanes=2).data.micro_batches(0):
            batches.append(batch)
            server.statuses = [500, 503, 429]
            server.breaks = [1, 100]
        assert rows_of(batches) == expected


@pytest.mark.fault
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_server_that_goes_away_ends_the_run_with_its_url(made, num_workers, monkeypatch):
    hurry(monkeypatch, retries=1)
    with serve(web_server(made)) as server:
        task = task_of(open_store(f"{server.url}/store"), num_workers=num_workers)
        batches = task.data.micro_batches(0)
        next(batches)
    with pytest.raises(
        (RemoteError, RunFailed), match=rf"^{server.url}/store/.* cannot be reached .*check address and network"
    ) as caught:
        list(batches)
    assert "\n" not in str(caught.value)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("action", "message"),
    [
        (fake_dataset.die, r"data worker [01] \(pid \d+\) was killed by SIGKILL; last sample {}"),
        (
            fake_dataset.hang,
            r"data worker [01] \(pid \d+\) sent nothing for 30 s \(reader.timeout_seconds\); last sample {}",
        ),
        (fake_dataset.raise_value_error, "data worker [01] failed at sample {}"),
    ],
)
def test_a_worker_that_dies_hangs_or_fails_is_named_as_with_a_local_store(made, action, message):
    with serve(web_server(made)) as server:
        task = task_of(open_store(f"{server.url}/store"))
        dataset = task.dataset
        order = build_order(dataset, seed=0, window_shards=2)
        plan = BatchPlan(order=order, global_batch_size=4, micro_batch_size=4)
        rows = order.rows(0, 8)
        victim = dataset.sample_id(int(rows.shard_ids[6]), int(rows.ranks[6]))
        transform = fake_dataset.AtSample(victim, action, then=task.transform())
        config = ReaderConfig(num_workers=2, timeout_seconds=30)
        loader = build_loader(dataset, plan, start_step=0, num_steps=4, transform=transform, config=config)
        with pytest.raises(RuntimeError, match=message.format(victim)):
            list(loader)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_damaged_image_is_replaced_as_in_a_local_store(made, tmp_path, num_workers):
    """One bit of an image's pixels is flipped: the checksum of its views tells."""
    shutil.copytree(made / "store", tmp_path / "store")
    store = open_store(made / "store")
    table, tar = store.samples(0), store.image_location(0)
    middle = int(table.img_off[1]) + int(table.img_len[1]) // 2
    path = tmp_path / "store" / os.path.relpath(tar, made / "store")
    with path.open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 0x40]))
    budget = {"bad_sample_budget": 0.5, "lanes": 1}
    batches = list(task_of(open_store(tmp_path / "store"), **budget).data.micro_batches(0))
    reports = [(report.sample_id, report.reason) for batch in batches for report in batch["bad_samples"]]
    assert reports and {sample_id for sample_id, _ in reports} == {f"{store.shards[0].stem}/{table.key[1]}"}
    with serve(web_server(tmp_path)) as server:
        remote = task_of(open_store(f"{server.url}/store"), num_workers=num_workers, **budget)
        found = list(remote.data.micro_batches(0))
    assert rows_of(found) == rows_of(batches)
    assert [(report.sample_id, report.reason) for batch in found for report in batch["bad_samples"]] == reports


def test_a_token_tar_damaged_on_the_server_stops_the_run(made, tmp_path):
    """A changed token within the vocabulary: its own checksum tells, or the sha256 of the tar in the cache."""
    with serve(web_server(made)) as server:
        store = open_store(f"{server.url}/store")
        for shard_id in range(len(store.shards)):
            path = f"/store/tokens/{store.shards[shard_id].token_file}"
            content, place = bytearray(server.files[path]), int(store.samples(shard_id).tok_off[0])
            content[place] ^= 1
            server.files[path] = bytes(content)
        store.use_cache(ShardCache(tmp_path, 10**8))
        with pytest.raises(InputError, match=r"tokens/.*\.tar is damaged: its sha256"):
            for _ in range(1000):
                list(task_of(store).data.micro_batches(0))


def test_damaged_tokens_on_a_server_stop_a_run_without_a_cache(made):
    with serve(web_server(made)) as server:
        store = open_store(f"{server.url}/store")
        assert store.has_token_sums
        for shard_id in range(len(store.shards)):
            path = f"/store/tokens/{store.shards[shard_id].token_file}"
            content, table = bytearray(server.files[path]), store.samples(shard_id)
            for offset, length in zip(table.tok_off.tolist(), table.tok_len.tolist(), strict=True):
                for place in range(offset, offset + length, 8):  # every fourth token
                    content[place] ^= 1
            server.files[path] = bytes(content)
        with pytest.raises(InputError, match=r"tokens/.*\.tar is damaged: its sha256 .*noticed at"):
            list(task_of(store, cache_bytes=0).data.micro_batches(0))


def test_the_lines_of_the_learning_signal_are_the_same(made):
    local = task_of(open_store(made / "store")).held_out.baselines
    with serve(web_server(made)) as server:
        remote = task_of(open_store(f"{server.url}/store")).held_out.baselines
    assert (remote.unigram == local.unigram).all()


@pytest.mark.parametrize("where", ["local", "http"])
@pytest.mark.parametrize("kind", ["tokens", "images"])
@pytest.mark.parametrize("keep", [-1, -600, 512])
def test_a_cut_tar_is_found_at_the_start(made, tmp_path, where, kind, keep):
    shutil.copytree(made / "store", tmp_path / "store")
    victim = sorted((tmp_path / "store" / kind).glob("*.tar"))[3]
    victim.write_bytes(victim.read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"{victim.name} .*bytes"):
        if where == "local":
            open_store(tmp_path / "store")
        else:
            with serve(web_server(tmp_path)) as server:
                open_store(f"{server.url}/store")


def test_a_repacked_image_tar_on_a_server_is_found_at_the_start(made, tmp_path):
    """Same keys and size, other order; the stamp of the tars is that of another place, so headers are looked at."""
    store = open_store(made / "store")
    store.shards = type(store.shards).from_rows(replace(row, image_stamp="elsewhere") for row in store.shards)
    table = store.samples(2)
    with serve(web_server(made)) as server:
        moved = open_store(f"{server.url}/store", check_images=False)
        moved.shards = store.shards
        check_image_tars(moved)
        path = f"/store/images/{store.shards[2].image_file.rpartition('/')[2]}"
        content = bytearray(server.files[path])
        name = f"{table.key[0]}.".encode()
        place = int(table.img_off[0]) - 512
        assert content[place : place + len(name)] == name
        header = content[place : place + 512]
        header[0] ^= 1
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        content[place : place + 512] = header
        server.files[path] = bytes(content)
        with pytest.raises(InputError, match="changed after it was tokenised .*no image of"):
            check_image_tars(moved)


@pytest.mark.parametrize("where", ["local", "http"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"vocab_size": 16', '"vocab_size": 2', "has token id .*, the vocabulary has 2"),
        ('"views": 3', '"views": 4', "store.json says 4 views of 4 x 4 tokens"),
        ('"grid_size": 4', '"grid_size": 8', r"grid_size \(8\) must be img_size / patch_size, 4"),
    ],
)
def test_tokens_that_do_not_fit_store_json_are_refused_before_step_0(made, tmp_path, where, old, new, message):
    shutil.copytree(made / "store", tmp_path / "store")
    path = tmp_path / "store/store.json"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        if where == "local":
            check_store(open_store(tmp_path / "store"), config_of())
        else:
            with serve(web_server(tmp_path)) as server:
                check_store(open_store(f"{server.url}/store"), config_of())

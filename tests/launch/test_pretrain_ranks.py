"""Pre-training on any number of ranks: same measurements, same batches through a chain of resumes, lost workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from beit.common.runs.metrics import read_metrics
from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer
from beit.tests.encoders import save_encoder
from beit.tests.support import write_images, write_tokenizer

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

SETTINGS = """
    model.embed_dim=32 model.num_heads=2 model.depth=2 train.steps=2 train.global_batch_size=8 train.precision=fp32
    reader.num_workers=0 deepspeed.zero_stage=3 optimizer.kind=adamw held_out.micro_batch_size=5
    held_out.train_images=31 probe.micro_batch_size=7 probe.data=labelled
""".split()


def beit(*words: str, cwd: Path, fault: str = "") -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BEIT_FAULT": fault}
    command = [sys.executable, "-m", "beit.cli", *words]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == (1 if fault else 0), result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    write_images(path / "photos", 100)
    write_images(path / "labelled", 40, classes=("blue", "red"))
    write_tokenizer(path / "tokenizer")
    size = ("--img-size", "16", "--patch-size", "4")
    beit("tokenize", "photos", "bare", "--views", "0", *size, cwd=path)
    shape = ViTConfig(img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=2)
    save_encoder(
        path / "encoder", VisionTransformer(shape).state_dict(), architecture=shape, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    beit("tokenize", "photos", "store", "--views", "2", "--tokenizer", "tokenizer", *size, cwd=path)
    return path


@pytest.mark.parametrize(
    ("store", "setting", "measured"),
    [
        ("bare", "tokenizer.online=tokenizer", "train_bits"),
        ("store", "objective.kind=masked_pixels", "train_mse"),
        ("store", "init=encoder", "train_bits"),
        ("store", "optimizer.kind=muon deepspeed.zero_stage=0", "train_bits"),
        ("store", "objective.aggregate=2", "train_bits"),
    ],
    ids=["online", "pixels", "init", "muon", "aggregate"],
)
def test_two_ranks_measure_what_one_does(folder: Path, store: str, setting: str, measured: str) -> None:
    records = []
    for ranks in ("1", "2"):
        run = f"{measured}-{setting.partition('=')[0]}-{ranks}"
        sets = [word for assignment in (*SETTINGS, *setting.split()) for word in ("--set", assignment)]
        beit("pretrain", store, run, "--recipe", "beit_tiny_patch4_32", "--gpus", ranks, *sets, cwd=folder)
        last = read_metrics(folder / run / "metrics.jsonl")[-1]
        records.append({name: value for name, value in last.items() if not name.startswith("evaluation_")})  # times
        assert (folder / run / "reconstruction.png").is_file()
    assert {"probe_linear_acc", measured} <= records[0].keys()
    assert records[1] == pytest.approx(records[0], rel=1e-3)


CHAIN = """
    model.embed_dim=32 model.num_heads=2 model.depth=2 model.drop_path=0.0 mask.exact=true train.steps=12
    train.global_batch_size=8 train.precision=fp32 train.log_interval_steps=1 train.eval_interval_steps=12
    checkpoint.interval_steps=4 optimizer.warmup_steps=0 optimizer.kind=adamw
""".split()


def pretrain(run: str, folder: Path, *settings: str, gpus: int, fault: str = "") -> None:
    sets = [word for assignment in (*CHAIN, *settings) for word in ("--set", assignment)]
    words = ("pretrain", "store", run, "--recipe", "beit_tiny_patch4_32", "--gpus", str(gpus), *sets)
    beit(*words, cwd=folder, fault=fault)


@pytest.mark.fault
def test_a_chain_of_ranks_workers_and_stages_reads_the_batches_of_one_run(folder: Path) -> None:
    """Another batch, view or mask in any step would change that step's loss; every link dies at a commit."""
    pretrain("whole", folder, "reader.num_workers=0", gpus=4)
    links = [
        (2, "committed:1", ("reader.num_workers=1", "deepspeed.zero_stage=2")),
        (1, "commit:2", ("reader.num_workers=3", "reader.prefetch_batches=1", "train.micro_batch_size=2")),
        (2, "", ("reader.num_workers=0", "deepspeed.zero_stage=3")),
    ]
    for gpus, fault, settings in links:
        pretrain("chain", folder, *settings, gpus=gpus, fault=fault)
    whole, chain = (read_metrics(folder / run / "metrics.jsonl") for run in ("whole", "chain"))
    names = ("step", "loss", "mim_acc", "held_out_bits")
    values = [[record[name] for record in records for name in names if name in record] for records in (whole, chain)]
    assert len(values[0]) == 12 * 3 + 2
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    records = [json.loads((folder / run / "checkpoints/step_12/COMMIT.json").read_text()) for run in ("whole", "chain")]
    assert records[0]["record"]["data"] == records[1]["record"]["data"]
    starts = json.loads((folder / "chain/environment.json").read_text())["starts"]
    assert [Path(start["resumed_from"] or "").name for start in starts] == ["", "step_4", "step_8"]


def start_endless(folder: Path, run: str, *settings: str) -> subprocess.Popen[str]:
    """Start two ranks with a data worker each, and return when they train."""
    endless = (*CHAIN, "train.steps=100000", "reader.num_workers=1", *settings)
    sets = [word for assignment in endless for word in ("--set", assignment)]
    words = ("pretrain", "store", run, "--recipe", "beit_tiny_patch4_32", "--gpus", "2", *sets)
    command = [sys.executable, "-m", "beit.cli", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(read_metrics(folder / run / "metrics.jsonl")) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    return process


@pytest.mark.fault
def test_a_stop_signal_is_heard_while_the_worker_of_one_rank_is_stopped(folder: Path) -> None:
    process = start_endless(folder, "stopped", "checkpoint.interval_steps=1")
    victim = worker_of_rank_1(psutil.Process(process.pid))
    victim.suspend()
    time.sleep(2)
    began = time.monotonic()
    process.terminate()
    _, told = process.communicate(timeout=300)
    assert process.returncode == 75, told
    assert time.monotonic() - began < 120  # and not the 300 s of the reader and of collectives
    assert rf"stopped (SIGTERM) while waiting for data worker 0 (pid {victim.pid}, stopped by SIGSTOP)" in told
    assert not victim.is_running()


@pytest.mark.fault
def test_a_killed_data_worker_ends_all_ranks_and_is_named(folder: Path) -> None:
    process = start_endless(folder, "worker")
    victim = worker_of_rank_1(psutil.Process(process.pid))
    victim.kill()
    _, told = process.communicate(timeout=300)
    assert process.returncode == 1, told
    expected = rf"beit: rank 1: data worker 0 \(pid {victim.pid}\) was killed by SIGKILL; last sample \S+/\S+"
    assert re.search(expected, told), told
    assert told.rstrip().endswith("beit: rank 1 failed first")


def worker_of_rank_1(command: psutil.Process) -> psutil.Process:
    """The process that a rank's fork server has forked."""
    ranks = [child for child in command.children(recursive=True) if child.cmdline()[1:4] == ["-u", "-m", "beit.cli"]]
    (rank,) = [rank for rank in ranks if rank.environ()["RANK"] == "1"]
    return next(worker for server in rank.children() for worker in server.children())

"""Where and how the tokenizer runs, and the fingerprint of it that makes tokens comparable bit for bit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow
import torch

from beit import __version__
from beit.common.errors import InputError
from beit.common.processes.cores import available_cores
from beit.common.shards.schema import Execution
from beit.common.views import replay_versions
from beit.tokenize.config import TokenizeConfig


def choose_device(config: TokenizeConfig, local_rank: int) -> str:
    """Return the torch device of this rank: "cpu" or "cuda:N".

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cuda" and not num_gpus:
        raise InputError('device ("cuda") needs a GPU, and torch sees none; use device="cpu" or a CUDA build of torch')
    if config.device == "cpu" or not num_gpus:
        return "cpu"
    return f"cuda:{local_rank % num_gpus}"


def describe_execution(
    config: TokenizeConfig, *, device: str, dtype: str, is_compiled: bool, threads: int
) -> Execution:
    """Return the fingerprint of this rank."""
    if device == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
    else:
        capability = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return Execution(
        device=device.partition(":")[0],
        capability=capability,
        dtype=dtype,
        is_compiled=is_compiled,
        micro_batch_size=config.micro_batch_size,
        threads=threads,
        torch_version=str(torch.__version__),
    )


def library_versions() -> tuple[str, ...]:
    """Return "name version" of everything that shapes the bytes of a store."""
    versions = replay_versions() | {"beit": __version__, "pyarrow": pyarrow.__version__, "torch": torch.__version__}
    return tuple(f"{name} {version}" for name, version in sorted(versions.items()))


def count_workers(config: TokenizeConfig) -> int:
    """Return the number of decoding threads of this rank: its share of the cores unless given."""
    # As torchrun, DeepSpeed's launcher and SLURM say how many ranks this machine has; SLURM's list begins as "4(x3),2".
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
    given = next((os.environ[name] for name in names if os.environ.get(name)), "1")
    match = re.match(r"[1-9][0-9]*", given)
    ranks_here = int(match.group()) if match else 1
    return config.workers or max(1, available_cores() // ranks_here)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch operations with `count` threads, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""What a run is expected to take is said before it begins, and what cannot fit is refused."""

import pytest
import torch

from beit.common.errors import InputError
from beit.common.forecast import memory
from beit.common.forecast.training import RUN_BYTES, TrainingForecast
from beit.common.processes.distributed import World
from beit.common.training.outlook import foretelling
from beit.pretrain.train import PretrainTask, run
from beit.tests.support import write_store
from beit.tests.unit.pretrain.test_train import make_config

ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"))


def foretold(store, config) -> TrainingForecast:
    return PretrainTask(config, store, ALONE).forecast(foretelling.hardware_of(ALONE))


def test_two_lines_come_before_the_first_step_and_the_measured_one_after_it(store, tmp_path, caplog):
    caplog.set_level("INFO")
    config = make_config()
    run(config, store=store.location, run_dir=tmp_path / "run")
    time, disk = [line for line in caplog.messages if line.startswith("expected: ")]
    found = foretold(store, config)
    assert "of memory, in micro-batches of " in time and " are free there; 6 steps see " in disk
    assert time.endswith(found.lines()[0].split(") and ")[1]) and disk.startswith(found.lines()[1].split(";")[0])
    (measured,) = [line for line in caplog.messages if line.startswith("measured: ")]
    assert caplog.messages.index(disk) < caplog.messages.index(measured) and "disk" not in measured
    run(config, store=store.location, run_dir=tmp_path / "run")
    assert len([line for line in caplog.messages if line.startswith("expected: ")]) == 2, "a finished run takes nothing"


def test_the_disk_foretold_is_the_disk_taken(store, tmp_path):
    config = make_config()
    run(config, store=store.location, run_dir=tmp_path / "run")
    found = foretold(store, config)
    weights = sorted((tmp_path / "run").rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in weights) == pytest.approx(found.disk_bytes - RUN_BYTES, rel=0.25)


def test_memory_that_cannot_be_enough_is_refused_with_a_size_that_is(store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(memory, "_REPORT_BYTES", 0.0)  # more than any step of these models
    config = make_config(train={"micro_batch_size": 8})
    found = foretold(store, config)
    small, large = (found.memory_at(size).total for size in (4, 8))
    assert small < large == found.memory.total
    monkeypatch.setattr(foretelling, "_SURE", 1.0)  # these models are small beside the process itself
    monkeypatch.setattr(foretelling, "_held_bytes", lambda device: 0)
    monkeypatch.setattr(foretelling, "free_memory_bytes", lambda device: (small + large) / 2)
    words = r"^a training with micro-batches of 8 images needs about .* left for it; --set train.micro_batch_size=4"
    with pytest.raises(InputError, match=words) as error:
        run(config, store=store.location, run_dir=tmp_path / "run")
    assert str(error.value).endswith("; to go on regardless, --set run.allow_shortage=true")
    assert not (tmp_path / "run").exists()
    regardless = make_config(train={"micro_batch_size": 8}, run={"allow_shortage": True})
    run(regardless, store=store.location, run_dir=tmp_path / "run")
    assert "needs about" in caplog.text


def test_a_disk_that_cannot_be_enough_is_refused_unless_told_otherwise(store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(foretelling, "free_disk_of", lambda path: 5000)
    with pytest.raises(InputError, match=r"^the run will need .* of disk, and that of .*run has 5 kB free; name"):
        run(make_config(), store=store.location, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(make_config(run={"allow_shortage": True}), store=store.location, run_dir=tmp_path / "run")
    assert "the run will need" in caplog.text


def test_what_is_there_already_needs_no_room(store, tmp_path, monkeypatch):
    config = make_config()
    run(config, store=store.location, run_dir=tmp_path / "run")
    found = foretold(store, config)
    monkeypatch.setattr(foretelling, "free_disk_of", lambda path: found.checkpoint_bytes + RUN_BYTES + 2000)
    longer = make_config(train={"steps": 8})
    run(longer, store=store.location, run_dir=tmp_path / "run", resume=str(tmp_path / "run"))

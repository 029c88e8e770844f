"""The door by which a command and a plan learn what a pre-training will take."""

import subprocess
import sys

import pytest
import torch

from beit.common.forecast.hardware import named
from beit.common.processes.distributed import World
from beit.common.training.outlook import foretelling
from beit.pretrain.forecast import forecast, load
from beit.pretrain.train import PretrainTask
from beit.tests.support import write_store
from beit.tests.unit.pretrain.test_train import make_config

ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
IMAGENET = {"num_images": 1_281_167, "img_size": 224, "patch_size": 16, "vocab_size": 8192, "views": 16}


def test_a_plan_and_the_command_say_the_same(tmp_path):
    store = write_store(tmp_path)
    for sections in ({}, {"objective": {"aggregate": 1}}, {"objective": {"kind": "masked_pixels"}}):
        config = make_config(**sections)
        task = PretrainTask(config, store, ALONE)
        said = task.forecast(foretelling.hardware_of(ALONE))
        planned = forecast(
            config,
            num_images=int(task.dataset.shard_sizes.sum()),
            img_size=16,
            patch_size=4,
            vocab_size=store.info.tokenizer.vocab_size,
            views=3,
            num_shards=4,
            num_held_out=int(task.held_out_images.shard_sizes.sum()),
            hardware=said.hardware,
        )
        assert planned.lines() == said.lines() and planned.memory == said.memory
        assert said.model.parameters == sum(weight.numel() for weight in task.model.parameters())
        assert said.model.flops_per_image == task.flops_per_sample()
        assert said.steps == task.data.plan.total_steps


def test_it_answers_without_torch():
    code = (
        "import sys; from beit.pretrain.forecast import *; import beit.finetune.forecast, beit.tokenize.forecast\n"
        "from beit.common.forecast.hardware import named\n"
        f"forecast(load('beit_base_patch16_224_1k'), hardware=named('A100'), **{IMAGENET})\n"
        "print({'torch', 'click', 'deepspeed'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


def test_the_published_pre_training_takes_days_on_sixteen_v100():
    """Five days, the paper says; in float16."""
    found = forecast(
        load("beit_base_patch16_224_1k", ["train.precision=fp16"]),
        hardware=named("V100", num_devices=16, num_machines=2),
        **IMAGENET,
    )
    assert found.seconds is not None and 3 < found.seconds / 86400 < 8
    assert found.epochs == pytest.approx(800, rel=1e-3) and found.fits and not found.problems


@pytest.mark.parametrize(
    ("overrides", "changes", "hardware", "what", "way_out"),
    [
        (
            [],
            {},
            named("A100", num_devices=3),
            "cannot be shared by 3 ranks",
            "or set it to 2049",
        ),
        (["train.micro_batch_size=512"], {}, named("A100", num_devices=8), "on 8 ranks", "train.micro_batch_size=256"),
        (["train.micro_batch_size=1024"], {}, named("T4", num_devices=2), "16 GB", "set it to 64"),
        ([], {"views": 0}, named("A100"), "holds no tokens (views = 0)", "tokenizer.online=NAME"),
        ([], {"num_images": 900}, named("A100"), "more than the 900 images", "train.global_batch_size=64"),
        ([], {"img_size": 112}, named("A100"), "this store has 112 px in 16 px", ""),
        (["reader.lanes=7"], {}, named("A100"), "reader.lanes (7) must divide", ""),
        (["optimizer.kind=muon", "deepspeed.zero_stage=2"], {}, named("A100"), "needs whole matrices", "adamw"),
        (["objective.aggregate=2", "objective.aggregate_from=12"], {}, named("A100"), "must be in [1, 11]", ""),
    ],
)
def test_rules_that_would_fail_later_are_named_with_the_way_out(overrides, changes, hardware, what, way_out):
    found = forecast(load("beit_base_patch16_224_1k", overrides), hardware=hardware, **IMAGENET | changes)
    (problem,) = [problem for problem in found.problems if what in str(problem)]
    assert way_out in problem.way_out or way_out in problem.what
    assert "\n" not in str(problem)


def test_zero_and_micro_batches_change_memory_as_they_should():
    card = named("A100", num_devices=8)
    found = forecast(load("beit_large_patch16_224_1k"), hardware=card, **IMAGENET)
    assert found.memory_at(1).total < found.memory_at(64).total
    assert found.memory_at(8, zero_stage=2).total < found.memory_at(8).total
    assert found.loader_cores_per_device is not None and found.loader_cores_per_device < 8
    assert found.as_json()["memory"]["total"] == found.memory.total

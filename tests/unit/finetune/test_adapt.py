"""Fine-tuning that changes only a part of the encoder: what stays, what is written, how it goes on."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.runs.metrics import read_metrics
from beit.finetune.artifact import build_classifier, load_classifier, starting_point
from beit.finetune.evaluation.evaluate import evaluation_loader, observe
from beit.finetune.evaluation.outcomes import OutcomeLog
from beit.finetune.evaluation.scores import compute_metrics
from beit.finetune.segmentation.artifact import load_segmenter
from beit.finetune.train import run
from beit.finetune.train_segmentation import run as run_segmentation
from beit.tests.unit.finetune.colours import finetune_config
from beit.tests.unit.finetune.segmentation.scenes import config as scene_config
from beit.tests.unit.finetune.segmentation.scenes import write_scenes
from beit.tests.unit.finetune.test_train import assert_same_run, task_for

ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
MATRICES = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def changed(before, after):
    before, after = (load_file(path / "model.safetensors") for path in (before, after))
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_updates_are_merged_into_every_model_and_the_rest_stays(tmp_path, finished, caplog):
    caplog.set_level("INFO")
    config = finetune_config(
        "adapt=lora:4", "train.steps=4", f"encoder={finished.run / 'model'}", f"data.val={finished.val}"
    )
    run(config, data=str(finished.train), run_dir=tmp_path / "run")
    matrices = {f"blocks.{i}.{name}" for i in range(2) for name in MATRICES}
    for model in ("last", "model"):
        found = changed(finished.run / "model", tmp_path / "run" / model)
        assert found == matrices | {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert "M parameters trained; 36 training and 20 validation images" in caplog.text
    assert 'adapt = "lora:4"' in (tmp_path / "run/config.toml").read_text()


def test_a_merged_model_measures_what_the_run_measured(tmp_path, finished):
    settings = ("adapt=lora:4", "train.steps=6", "train.ema_decay=0.5", "train.eval_interval_steps=3")
    config = finetune_config(*settings, f"encoder={finished.run / 'model'}", f"data.val={finished.val}")
    run(config, data=str(finished.train), run_dir=tmp_path / "run")
    model, stored = load_classifier(tmp_path / "run")
    task = task_for(finished.train, finished.val)
    loader = evaluation_loader(task.images.val, stored, world=ALONE, settings=config.evaluation, reader=config.reader)
    with torch.no_grad():
        found = compute_metrics(observe(model, loader, stored, num_batches=len(loader), world=ALONE, log=OutcomeLog()))
    assert found.loss == pytest.approx(stored.provenance["metrics"]["loss"], abs=1e-5)


def test_the_last_blocks_are_freeze_blocks_seen_from_above(tmp_path, finished):
    encoder = f"encoder={finished.run / 'model'}"
    for name, setting in (("above", "adapt=last:1"), ("below", "freeze_blocks=1")):
        run(finetune_config(setting, "train.steps=3", encoder), data=str(finished.train), run_dir=tmp_path / name)
    assert not changed(tmp_path / "above/model", tmp_path / "below/model")
    found = changed(finished.run / "model", tmp_path / "above/model")
    assert {name.split(".")[0] for name in found} == {"blocks", "fc_norm", "head"}
    assert {name.split(".")[1] for name in found if name.startswith("blocks")} == {"1"}


@pytest.mark.parametrize("setting", ["lora:4", "last:1"])
def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path, finished, setting):
    config = finetune_config(
        f"adapt={setting}",
        f"encoder={finished.run / 'model'}",
        f"data.val={finished.val}",
        "model.drop_path=0.5",
        "train.ema_decay=0.9",
        "train.steps=6",
        "train.eval_interval_steps=3",
        "train.micro_batch_size=6",
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(config, data=str(finished.train), run_dir=whole)
    shutil.copytree(whole, cut)
    for lost in ("checkpoints/step_6", "last"):
        shutil.rmtree(cut / lost)
    run(config, data=str(finished.train), run_dir=cut)
    assert_same_run(whole, cut)


def test_the_step_is_the_same_in_smaller_micro_batches(tmp_path, finished):
    found = []
    for size in (12, 3):
        settings = ("adapt=lora:4", "train.steps=3", "model.drop_path=0.0", f"train.micro_batch_size={size}")
        config = finetune_config(*settings, f"encoder={finished.run / 'model'}")
        run(config, data=str(finished.train), run_dir=tmp_path / str(size))
        found.append([record["loss"] for record in read_metrics(tmp_path / str(size) / "metrics.jsonl")])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_position_tables_that_the_encoder_never_had_are_trained(tmp_path, finished):
    shape = ("model.pos_bias=none", "train.steps=1", "optimizer.warmup_steps=0")
    run(finetune_config(*shape), data=str(finished.train), run_dir=tmp_path / "plain")
    config = finetune_config("model.pos_bias=per_block", "adapt=lora:2", f"encoder={tmp_path / 'plain/model'}")
    model = build_classifier(config, starting_point(config), ("blue", "red"))
    assert model.blocks[0].attn.relative_position_bias_table.requires_grad
    assert not model.blocks[0].attn.q_bias.requires_grad


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapt=lora:4"], r'adapt \("lora:4"\) must be "all" with --encoder random'),
        (["adapt=last:1"], r'adapt \("last:1"\) must be "all" with --encoder random'),
        (["adapt=last:3", "encoder={run}"], "at most 2 blocks"),
        (["adapt=lora:25", "encoder={run}"], "rank of at most 24"),
    ],
)
def test_what_cannot_be_is_one_clear_line(finished, overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        starting_point(finetune_config(*(item.format(run=finished.run / "model") for item in overrides)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("resume", ["auto", "run"])
def test_another_adaptation_does_not_go_on(tmp_path, finished, resume):
    common, path = ("train.steps=2", f"encoder={finished.run / 'model'}"), tmp_path / "run"
    run(finetune_config(*common), data=str(finished.train), run_dir=path)
    with pytest.raises(InputError, match="adapt was all, is lora:4"):
        run(
            finetune_config(*common, "adapt=lora:4"),
            data=str(finished.train),
            run_dir=path,
            resume=str(path) if resume == "run" else resume,
        )


@pytest.mark.parametrize(
    "head", [("head.kind=linear",), ("head.kind=upernet", "head.channels=8")], ids=["linear", "upernet"]
)
def test_a_segmenter_learns_updates_and_is_written_plainly(tmp_path, head):
    write_scenes(tmp_path / "train", 6)
    write_scenes(tmp_path / "val", 3, start=100)
    first = scene_config(*head, "train.steps=2")
    run_segmentation(first, data=str(tmp_path), run_dir=tmp_path / "first")
    encoder = f"encoder={tmp_path / 'first/model'}"
    settings = scene_config(
        *head, "adapt=lora:4", "train.steps=4", "train.eval_interval_steps=2", "train.ema_decay=0.9", encoder
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_segmentation(settings, data=str(tmp_path), run_dir=whole)
    found = {name for name in changed(tmp_path / "first/model", whole / "last") if name.startswith("blocks")}
    assert found and {name.split(".", 2)[2] for name in found} == set(MATRICES)
    model, stored, _ = load_segmenter(whole)
    assert not any("lora" in name for name in model.state_dict())
    shutil.copytree(whole, cut)
    for lost in ("checkpoints/step_4", "last"):
        shutil.rmtree(cut / lost)
    run_segmentation(settings, data=str(tmp_path), run_dir=cut)
    assert not changed(whole / "last", cut / "last") and not changed(whole / "model", cut / "model")

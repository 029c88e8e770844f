"""Fine-tuning as a whole: it learns, keeps the best model, and resumes exactly."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.runs.metrics import read_metrics
from beit.common.vit.description import read_encoder_config
from beit.finetune.artifact import starting_point
from beit.finetune.config import DataConfig
from beit.finetune.data import open_training_data
from beit.finetune.evaluation.scores import Metrics
from beit.finetune.train import ClassificationTask, run
from beit.tests.support import files_of
from beit.tests.unit.finetune.colours import finetune_config, write_images

ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


def task_for(train, val=None, *overrides, world=ALONE):
    config = finetune_config(*overrides)
    data = open_training_data(str(train), DataConfig(val=None if val is None else str(val)))
    torch.manual_seed(0)
    return ClassificationTask(config, data, starting_point(config), world)


def test_two_colours_are_learned(finished):
    metrics = read_encoder_config(finished.run / "model").provenance["metrics"]
    assert metrics["top1"] > 0.9
    assert metrics["top5"] == 1.0
    assert metrics["num_images"] == 20


def test_every_evaluation_is_in_the_metrics(finished):
    records = [record for record in read_metrics(finished.run / "metrics.jsonl") if "val_top1" in record]
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    best = max(records, key=lambda record: (record["val_top1"], -record["val_loss"]))
    kept = read_encoder_config(finished.run / "model").provenance
    assert kept["step"] == best["step"]
    assert kept["metrics"]["top1"] == best["val_top1"]


def test_model_names_its_classes_and_where_it_comes_from(finished):
    stored = read_encoder_config(finished.run / "last")
    assert stored.class_names == ("blue", "red")
    assert stored.task == "classification"
    assert stored.provenance["step"] == 20
    assert stored.provenance["num_labels"] == 36
    assert stored.provenance["encoder"] == "random"
    json.dumps(stored.provenance)


def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path):
    train = write_images(tmp_path / "train", ("blue", "red"), 10)
    val = write_images(tmp_path / "val", ("blue", "red"), 3, start=50)
    config = finetune_config(
        f"data.val={val}",
        "model.drop_path=0.5",
        "augment.rand_augment=rand-m9-mstd0.5-inc1",
        "augment.erase_prob=0.5",
        "mix.prob=0.7",
        "train.ema_decay=0.9",
        "classifier.class_weights=balanced",
        "train.steps=6",
        "train.eval_interval_steps=3",
        "train.micro_batch_size=6",
        f"run.sync_to={tmp_path}/copy",
    )
    whole, cut, copy = tmp_path / "whole", tmp_path / "cut", tmp_path / "copy"
    run(config, data=str(train), run_dir=whole)
    shutil.copytree(whole, cut)
    for lost in ("checkpoints/step_6", "model", "last"):
        shutil.rmtree(cut / lost)
        shutil.rmtree(copy / lost)
    run(config, data=str(train), run_dir=cut)
    assert_same_run(whole, cut)
    shutil.rmtree(copy / "checkpoints/step_6")
    run(config, data=str(train), run_dir=tmp_path / "elsewhere")
    assert_same_run(whole, tmp_path / "elsewhere")


def assert_same_run(whole, other):
    for file in (
        "checkpoints/step_6/model.safetensors",
        "checkpoints/step_6/optimizer.safetensors",
        "last/model.safetensors",
        "model/model.safetensors",
    ):
        left, right = load_file(whole / file), load_file(other / file)
        assert left.keys() == right.keys()
        assert not [name for name in left if not torch.equal(left[name], right[name])]


def test_other_data_are_refused_on_resume(tmp_path, finished):
    other = write_images(tmp_path / "other", ("blue", "red"), 3)
    config = finetune_config(f"data.val={finished.val}", "train.steps=20", "train.eval_interval_steps=5")
    shutil.copytree(finished.run, tmp_path / "run")
    before = files_of(tmp_path / "run")
    with pytest.raises(InputError, match="data was"):
        run(config, data=str(other), run_dir=tmp_path / "run")
    assert files_of(tmp_path / "run") == before


def test_bad_input_leaves_no_run_directory(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        run(finetune_config(), data=str(tmp_path / "nowhere"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_last_line_says_how_far_the_number_can_be_trusted(finished, caplog):
    config = finetune_config(f"data.val={finished.val}", "train.steps=20", "train.eval_interval_steps=5")
    with caplog.at_level("INFO", logger="beit"):
        run(config, data=str(finished.train), run_dir=finished.run)
    (line,) = [message for message in caplog.messages if message.startswith("best model: ")]
    assert line.startswith("best model: top1 100.0 % (83.9 to 100.0 % with 95 % confidence, 20 images) at step ")


def test_ranks_share_the_batch_of_one_rank(finished):
    def samples(world_size):
        batches = []
        for rank in range(world_size):
            world = World(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
            task = task_for(finished.train, None, "train.steps=4", world=world)
            batches.append(list(task.data.micro_batches(0)))
        return [
            (
                [name for batch in step for name in batch["sample_ids"]],
                torch.cat([batch["images"] for batch in step]),
                torch.cat([batch["labels"] for batch in step]),
            )
            for step in zip(*batches, strict=True)
        ]

    for (ids, images, labels), (other_ids, other_images, other_labels) in zip(samples(1), samples(3), strict=True):
        assert ids == other_ids
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


BALANCED = ("data.balanced=true", "optimizer.warmup_steps=0")


def test_balanced_views_do_not_depend_on_ranks(tmp_path):
    write_images(tmp_path / "train", ("blue",), 8)
    write_images(tmp_path / "train", ("red",), 3)

    def pixels(world_size, accum=1):
        ranks = []
        for rank in range(world_size):
            world = World(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
            micro = f"train.micro_batch_size={12 // world_size // accum}"
            task = task_for(tmp_path / "train", None, "train.steps=3", micro, *BALANCED, world=world)
            ranks.append(list(task.data.micro_batches(0)))
        return torch.cat(
            [ranks[r][s * accum + a]["images"] for s in range(3) for r in range(world_size) for a in range(accum)]
        )

    alone = pixels(1)
    assert torch.equal(alone, pixels(3))
    assert torch.equal(alone, pixels(2, accum=2))
    assert len({image.numpy().tobytes() for image in alone}) == len(alone), "a view was shown twice"


def test_balanced_epochs_show_all_images_and_every_class_alike(tmp_path):
    write_images(tmp_path / "train", ("blue",), 8)
    write_images(tmp_path / "train", ("red",), 3)
    task = task_for(tmp_path / "train", None, "train.epochs=3", "train.global_batch_size=16", *BALANCED)
    labels, names = [], set()
    for batch in task.data.micro_batches(0):
        labels.append(batch["labels"].bincount().tolist())
        names |= set(batch["sample_ids"])
    assert labels == [[8, 8]] * 3
    assert len(names) == 11
    assert task.images.train.class_counts().tolist() == [8, 3], "the data themselves stay as they are"


def test_best_model_is_replaced_only_by_a_better_one(tmp_path, finished):
    task = task_for(finished.train, finished.val)
    state = task.model.state_dict()

    def save(step, top1, loss, measured_at=None):
        task.measured = (measured_at or step), Metrics(top1=top1, top5=1.0, loss=loss, num_images=20)
        task.save_artifacts(state, tmp_path, step, {})
        return read_encoder_config(tmp_path / "model").provenance["step"]

    assert save(1, 0.5, 1.0) == 1
    assert save(2, 0.4, 0.5) == 1
    assert save(3, 0.5, 0.9) == 3
    assert save(4, 0.9, 0.1, measured_at=3) == 3  # the numbers are another step's
    assert save(5, 0.6, 2.0) == 5
    assert read_encoder_config(tmp_path / "last").provenance["step"] == 5


def test_without_validation_the_model_is_the_newest(tmp_path, finished):
    task = task_for(finished.train)
    assert task.evaluate(task.model, 1) == {}
    for step in (1, 2):
        task.save_artifacts(task.model.state_dict(), tmp_path, step, {})
    assert read_encoder_config(tmp_path / "model").provenance["step"] == 2


def test_models_are_saved_when_they_are_measured(finished):
    assert task_for(finished.train, finished.val, "train.eval_interval_steps=7").data.plan.save_interval_steps == 7
    assert task_for(finished.train, None, "train.eval_interval_steps=7").data.plan.save_interval_steps == 3
    assert task_for(finished.train, finished.val, "checkpoint.interval_steps=9").data.plan.save_interval_steps == 9


def test_lower_layers_learn_more_slowly(finished):
    groups = task_for(finished.train, None, "layer_decay=0.5").param_groups()
    assert {group["lr_scale"] for group in groups} == {1.0, 0.5, 0.25, 0.125}


def test_frozen_blocks_keep_the_encoders_weights(tmp_path, finished):
    config = finetune_config("freeze_blocks=1", "train.steps=3", f"encoder={finished.run / 'model'}")
    run(config, data=str(finished.train), run_dir=tmp_path / "run")
    before, after = (load_file(path / "model/model.safetensors") for path in (finished.run, tmp_path / "run"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith(("patch_embed.", "cls_token", "pos_embed", "blocks.0."))}
    assert len(frozen) > 10
    assert frozen <= same
    assert not {name for name in same - frozen if name.startswith(("blocks.1.attn.qkv", "head."))}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["freeze_blocks=1"], "freeze_blocks .1. must be 0"),
        (["freeze_blocks=3", "encoder={run}"], "exceed the 2 blocks"),
    ],
)
def test_freezing_what_is_not_there_is_one_clear_line(finished, overrides, message):
    with pytest.raises(InputError, match=message):
        starting_point(finetune_config(*(item.format(run=finished.run / "model") for item in overrides)))


def test_class_weights_follow_the_training_images(tmp_path):
    train = tmp_path / "train"
    write_images(train, ("blue",), 9)
    write_images(train, ("red",), 3)
    task = task_for(train, None, "classifier.class_weights=balanced")
    torch.testing.assert_close(task.step.class_weights, torch.tensor([12 / 18, 12 / 6]))


GOLDEN_LOSSES = [1.098638, 1.098637, 1.054575, 1.055081, 1.043694, 0.921997, 0.833199, 0.987671]
"""Of the run below, float32 on a CPU, torch 2.13, Pillow 13, 2026-11-25. What changes them changes what users get."""


def test_losses_of_the_whole_recipe_are_the_golden_ones(tmp_path):
    write_images(tmp_path / "train", ("blue", "red", "green"), 8)
    recipe = ("augment.rand_augment=rand-m9-mstd0.5-inc1", "augment.erase_prob=0.25", "mix.prob=1.0", "train.steps=8")
    config = finetune_config(*recipe, "model.drop_path=0.1", "train.ema_decay=0.9")
    run(config, data=str(tmp_path / "train"), run_dir=tmp_path / "run")
    losses = [record["loss"] for record in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in record]
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-3)


def test_a_batch_larger_than_the_data_is_pointed_out_once(finished, tmp_path, caplog):
    config = finetune_config("train.global_batch_size=40", "train.steps=2")
    with caplog.at_level("WARNING", logger="beit"):
        run(config, data=str(finished.train), run_dir=tmp_path / "run")
    (said,) = [record.getMessage() for record in caplog.records if "train.global_batch_size" in record.getMessage()]
    assert "(40) is more than the 36 images to train on" in said

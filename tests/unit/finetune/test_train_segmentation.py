"""Training a segmenter as a whole: it learns, keeps the best model, resumes exactly, and says what it does."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.runs.metrics import read_metrics
from beit.common.training.micro_batches import settle_micro_batch
from beit.common.vit.description import read_encoder_config
from beit.finetune.masks.index import open_training_masks
from beit.finetune.segmentation.artifact import load_segmenter, settled_head
from beit.finetune.segmentation.config import IMAGENET
from beit.finetune.segmentation.cost import evaluation_windows, head_flops
from beit.finetune.train_segmentation import SegmentationTask, run, scene_starting_point
from beit.tests.unit.finetune.segmentation.scenes import NAMES, config, write_scenes

ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
GOLDEN = [1.57011, 1.56712, 1.40742, 1.40251]
UPERNET = ("head.kind=upernet", "head.channels=8")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 12)
    write_scenes(root / "val", 5, start=100)
    return root


def losses(run_dir):
    return [record["loss"] for record in read_metrics(run_dir / "metrics.jsonl") if "loss" in record]


def task_for(data, *overrides, world=ALONE):
    settings = config(*overrides)
    start = scene_starting_point(settings)
    settings = settings.__class__(**{**fields_of(settings), "head": settled_head(settings, start)})
    scenes = open_training_masks(str(data), settings.data, reading=settings.source)
    torch.manual_seed(0)
    return SegmentationTask(settings, scenes, start, world)


def fields_of(settings):
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def test_scenes_are_learned_and_the_best_model_is_kept(data, tmp_path, caplog):
    with caplog.at_level("INFO", logger="beit"):
        run(config("train.steps=30", "train.eval_interval_steps=10"), data=str(data), run_dir=tmp_path / "run")
    records = [record for record in read_metrics(tmp_path / "run/metrics.jsonl") if "val_miou" in record]
    assert [record["step"] for record in records] == [10, 20, 30]
    best = max(records, key=lambda record: (record["val_miou"], record["val_pixel_accuracy"]))
    _, stored, info = load_segmenter(tmp_path / "run")
    assert stored.provenance["step"] == best["step"]
    assert stored.provenance["metrics"]["miou"] == best["val_miou"] > 0.4
    assert stored.provenance["num_labels"] == 12
    assert info.classes.names == NAMES
    assert read_encoder_config(tmp_path / "run/last").provenance["step"] == 30
    assert losses(tmp_path / "run")[-1] < 0.6 * losses(tmp_path / "run")[0]
    with Image.open(tmp_path / "run/predictions.png") as sheet:
        assert min(sheet.size) > 300
    told = caplog.messages
    (classes,) = [line for line in told if line.startswith("3 classes, of the labelled pixels: ")]
    assert [word.split()[0] for word in classes.partition(": ")[2].split(", ")] == ["sky", "ground", "box"]
    assert any("linear head" in line and "12 training and 5 validation images" in line for line in told)
    assert any(line.startswith("best model: mIoU ") for line in told)


@pytest.mark.parametrize("head", [("head.kind=linear",), UPERNET], ids=["linear", "upernet"])
def test_a_stopped_run_equals_an_uninterrupted_one_bit_for_bit(data, tmp_path, head):
    settings = config(
        *head,
        "model.drop_path=0.5",
        "train.ema_decay=0.9",
        "train.steps=6",
        "train.eval_interval_steps=3",
        "class_weights=balanced",
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(settings, data=str(data), run_dir=whole)
    shutil.copytree(whole, cut)
    for lost in ("checkpoints/step_6", "last"):
        shutil.rmtree(cut / lost)
    run(settings, data=str(data), run_dir=cut)
    for file in ("checkpoints/step_6/model", "checkpoints/step_6/optimizer", "last/model", "model/model"):
        left, right = (load_file(path / f"{file}.safetensors") for path in (whole, cut))
        assert left.keys() == right.keys()
        assert not [name for name in left if not torch.equal(left[name], right[name])]
    buffers = [name for name in load_file(whole / "last/model.safetensors") if name.endswith("running_mean")]
    assert bool(buffers) == (head == UPERNET)


def test_losses_of_a_fixed_run_stay_what_they_were(data, tmp_path):
    run(config(*UPERNET, "train.steps=4", "model.drop_path=0.0"), data=str(data), run_dir=tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(GOLDEN, rel=2e-4)


def test_the_step_is_the_same_in_smaller_micro_batches(data, tmp_path):
    found = []
    for size in (4, 1):
        settings = config("train.steps=3", "model.drop_path=0.0", "head.dropout=0.0", f"train.micro_batch_size={size}")
        run(settings, data=str(data), run_dir=tmp_path / str(size))
        found.append(losses(tmp_path / str(size)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_ranks_share_the_batch_of_one_rank(data):
    def samples(world_size):
        batches = []
        for rank in range(world_size):
            world = World(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
            batches.append(list(task_for(data, "train.steps=3", world=world).data.micro_batches(0)))
        return [
            [torch.cat([batch[name] for batch in step]) for name in ("images", "masks")]
            for step in zip(*batches, strict=True)
        ]

    for one, two in zip(samples(1), samples(2), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))


def test_batch_statistics_are_of_the_whole_batch_unless_a_micro_batch_is_set(data):
    assert task_for(data, *UPERNET).data.rows_together is None
    assert task_for(data, "head.kind=linear").data.rows_together == 1
    alone = task_for(data, *UPERNET, "train.micro_batch_size=1")
    assert alone.config.head.norm == "group"
    with pytest.raises(InputError, match=r"at least 2 images at a time.*head\.norm=group"):
        _ = task_for(data, *UPERNET, "train.micro_batch_size=1", "head.norm=batch").model


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1)])
def test_other_ranks_keep_the_images_that_statistics_are_of(data, caplog, before, now):
    settings = (*UPERNET, "head.norm=batch")
    world = World(rank=0, local_rank=0, world_size=now, device=torch.device("cpu"))
    task = task_for(data, *settings, world=world)
    batch = task.config.train.global_batch_size
    record = {"micro_batch_size": batch // before, "world_size": before}
    checkpoint = SimpleNamespace(record=record, step=10**6)
    settle_micro_batch(task, task.config, checkpoint=checkpoint, world=world)
    assert task.data.plan.micro_batch_size == batch // now and "batch norm saw" not in caplog.text
    other = task_for(data, *settings, f"train.micro_batch_size={batch // 2}")
    settle_micro_batch(other, other.config, checkpoint=checkpoint, world=ALONE)
    assert f"batch norm saw {batch} images at a time and now sees {batch // 2}" in caplog.text


def test_heads_learn_at_the_full_rate_and_cls_is_not_decayed(data):
    task = task_for(data, *UPERNET, "layer_decay=0.5", "optimizer.weight_decay=0.1")
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in task.param_groups()
        for parameter in group["params"]
    }
    heads = {name for name in found if name.startswith(("neck.", "decode_head.", "auxiliary_head."))}
    assert {found[name][0] for name in heads} == {1.0}
    assert found["decode_head.conv_seg.weight"] == (1.0, 0.1)
    assert found["decode_head.conv_seg.bias"] == (1.0, 0.0)
    assert found["cls_token"] == (0.5**5, 0.0)
    assert found["blocks.3.mlp.fc1.weight"] == (0.5, 0.1)
    assert {found[name][1] for name in heads if ".bn." in name} == {0.0}


def test_the_normalisation_of_imagenet_is_an_option_and_is_recorded(data, tmp_path):
    run(config("train.steps=2", "normalization=imagenet"), data=str(data), run_dir=tmp_path / "run")
    assert read_encoder_config(tmp_path / "run/model").normalization == IMAGENET
    again = config("normalization=imagenet", f"image.mean={list(IMAGENET.mean)}", f"image.std={list(IMAGENET.std)}")
    assert scene_starting_point(again).normalization == IMAGENET
    with pytest.raises(InputError, match="leave them out"):
        config("normalization=imagenet", "image.mean=[0.5, 0.5, 0.5]")


def test_an_encoder_that_saw_other_pixels_can_be_trained_with_those_of_imagenet(data, tmp_path):
    run(config("train.steps=2"), data=str(data), run_dir=tmp_path / "first")
    second = config("train.steps=2", "normalization=imagenet", f"encoder={tmp_path / 'first/model'}")
    run(second, data=str(data), run_dir=tmp_path / "second")
    assert read_encoder_config(tmp_path / "second/model").normalization == IMAGENET


def test_a_frozen_encoder_stays_as_it_was(data, tmp_path):
    run(config("train.steps=2"), data=str(data), run_dir=tmp_path / "first")
    frozen = config("train.steps=2", "freeze_blocks=4", f"encoder={tmp_path / 'first/model'}", "head.blocks=[3]")
    run(frozen, data=str(data), run_dir=tmp_path / "second")
    before, after = (load_file(tmp_path / name / "last/model.safetensors") for name in ("first", "second"))
    kept = [name for name in after if not name.startswith("decode_head.")]
    assert len(kept) > 40
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_a_class_without_a_pixel_is_named_before_training(data, tmp_path, caplog):
    shutil.copytree(data, tmp_path / "data")
    for part in ("train", "val"):
        (tmp_path / "data" / part / "classes.json").write_text(json.dumps([*NAMES, "boat"]))
    with caplog.at_level("WARNING", logger="beit"):
        run(config("train.steps=2"), data=str(tmp_path / "data"), run_dir=tmp_path / "run")
    assert "no pixel of the training images is of 1 class (boat); the model will not find it" in caplog.messages


def test_without_validation_images_the_last_model_is_the_model(data, tmp_path, caplog):
    with caplog.at_level("INFO", logger="beit"):
        run(config("train.steps=2"), data=str(data / "train"), run_dir=tmp_path / "run")
    assert read_encoder_config(tmp_path / "run/model").provenance["step"] == 2
    assert not (tmp_path / "run/predictions.png").exists()
    assert any(line.startswith("no --val") for line in caplog.messages)


def test_edited_masks_are_refused_on_resume(data, tmp_path):
    shutil.copytree(data / "train", tmp_path / "train")
    settings = config("train.steps=2", "checkpoint.interval_steps=1")
    run(settings, data=str(tmp_path / "train"), run_dir=tmp_path / "run")
    mask = sorted((tmp_path / "train/annotations").iterdir())[0]
    ids = np.asarray(Image.open(mask)).copy()
    ids[10:] = 0
    Image.fromarray(ids).save(mask)
    with pytest.raises(InputError, match="data"):
        run(settings, data=str(tmp_path / "train"), run_dir=tmp_path / "run")


def test_a_crop_that_patches_do_not_divide_is_one_clear_line(data, tmp_path):
    with pytest.raises(InputError, match="img_size"):
        run(config("image.img_size=18"), data=str(data), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_of_a_probe_is_refused(data, tmp_path):
    (tmp_path / "run/features").mkdir(parents=True)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/segmentation-probe.json").write_text("{}")
    for name in ("run", "masks"):
        (tmp_path / name / "config.toml").write_text("[head]\nkind = 'linear'\n")
        with pytest.raises(InputError, match="holds a run of beit finetune linear-probe or knn, not beit finetune seg"):
            run(config(), data=str(data), run_dir=tmp_path / name)


def test_windows_with_gaps_are_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(InputError, match=r"evaluation.stride \(999\) must not exceed the windows"):
        run(config("evaluation.stride=999"), data=str(data), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_evaluation_costs_its_windows():
    counts = np.array([[100, 0, 44], [10, 0, 0]])
    plain = config().evaluation
    assert evaluation_windows(counts, plain, crop_px=6) == 144 / 16 + 1
    both = config("evaluation.flip=true", "evaluation.scales=[1.0, 2.0]").evaluation
    assert evaluation_windows(counts, both, crop_px=6) == 2 * (144 / 16 + 1 + 4 * 144 / 16 + 40 / 16)
    assert evaluation_windows(counts, config("evaluation.mode=whole").evaluation, crop_px=12) == 2


def test_arithmetic_of_a_head_is_that_of_its_products(data):
    task = task_for(data, "head.kind=linear", "head.blocks=[3]")
    # One product of every patch with the classes, multiplications and additions.
    assert head_flops(task.start.architecture, task.config.head, num_classes=3) == 2 * 16 * 24 * 3
    heavy = task_for(data, *UPERNET)
    assert heavy.flops_per_sample() > 2 * task.flops_per_sample()


def test_somebody_in_a_hurry_hears_what_the_head_alone_takes(data, tmp_path):
    assert task_for(data).quicker(1e9) is None  # random weights are nothing to keep
    run(config("train.steps=2"), data=str(data), run_dir=tmp_path / "first")
    encoder = f"encoder={tmp_path / 'first/model'}"
    assert task_for(data, encoder, "freeze_blocks=4").quicker(1e9) is None
    task, frozen = task_for(data, encoder), task_for(data, encoder, "freeze_blocks=4")
    assert 3 * frozen.flops_per_sample() < 1.2 * task.flops_per_sample()
    rate = frozen.flops_per_sample() * frozen.data.plan.global_batch_size * frozen.data.plan.total_steps / 120
    assert task.quicker(rate) == "the head alone takes about 2 min: --set freeze_blocks=4"

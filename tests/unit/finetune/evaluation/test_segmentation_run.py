"""A trained segmenter: what the training measured is what `beit evaluate` finds, and what `beit compare` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from beit.common.config import load_config
from beit.common.runs.layout import MASK_PROBE
from beit.common.vit.description import read_encoder_config
from beit.finetune.compare.compare import compare_runs
from beit.finetune.compare.report import as_text
from beit.finetune.evaluation.segmentation import evaluate_segmenter
from beit.finetune.probe.segmentation import run_segmentation_probe
from beit.finetune.segmentation.config import SegmentationConfig
from beit.finetune.train_segmentation import run
from beit.tests.unit.finetune.evaluation.streets import write_streets

TINY = (
    "encoder=random",
    "image.img_size=16",
    "image.patch_size=4",
    "model.embed_dim=24",
    "model.depth=2",
    "model.num_heads=2",
    "train.precision=fp32",
    "train.steps=6",
    "train.global_batch_size=4",
    "train.log_interval_steps=1",
    "train.eval_interval_steps=3",
    "optimizer.warmup_steps=1",
    "optimizer.lr=3e-3",
    "reader.num_workers=0",
)


@dataclass
class Trained:
    data: Path
    run: Path
    config: SegmentationConfig


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    data, val = write_streets(root / "data/train", 8), write_streets(root / "data/val", 5, start=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEIT_CACHE", str(root / "cache"))
        settings = [*TINY, f"data.val={val}"]
        config = load_config(SegmentationConfig, recipe=None, overrides=settings, recipe_dir=root)
        run(config, data=str(data), run_dir=root / "run")
        yield Trained(data, root / "run", config)


def test_the_command_repeats_what_training_measured(trained):
    report = evaluate_segmenter(trained.run, trained.config.data.val)
    kept = read_encoder_config(trained.run / "model").provenance
    assert {name: getattr(report.metrics, name) for name in kept["metrics"]} == kept["metrics"]


def test_compare_reads_a_run_and_its_evaluation_alike(trained):
    (before,) = compare_runs([trained.run]).groups
    assert (before.metric, before.task) == ("miou", "segmentation")
    evaluate_segmenter(trained.run, trained.config.data.val, out=trained.run / "evaluation.json")
    (after,) = compare_runs([trained.run]).groups
    assert after.interval == before.interval
    assert after.runs[0].settings == before.runs[0].settings
    assert after.runs[0].measured_sha256 == before.runs[0].measured_sha256
    text = as_text(compare_runs([trained.run]))
    assert "segmentation, mIoU" in text and "bootstrap" in text


def test_compare_reads_probes(trained, tmp_path):
    run_segmentation_probe(trained.config, data=str(trained.data), run_dir=tmp_path / "probe")
    (group,) = compare_runs([tmp_path / "probe"]).groups
    assert (group.metric, group.task) == ("miou", MASK_PROBE)
    assert "segmentation probe, mIoU" in as_text(compare_runs([tmp_path / "probe", trained.run]))

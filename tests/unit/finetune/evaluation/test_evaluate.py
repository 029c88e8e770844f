"""Metrics are exact: every image once, for any number of ranks and any batch size."""

import json
from dataclasses import asdict, dataclass

import pytest
import torch

from beit.common.errors import InputError
from beit.common.reading.config import ReaderConfig
from beit.common.vit.description import read_encoder_config
from beit.finetune.artifact import load_classifier
from beit.finetune.config import EvaluationConfig
from beit.finetune.data import open_evaluation_data
from beit.finetune.evaluation.evaluate import evaluate_model, evaluation_loader, observe
from beit.finetune.evaluation.outcomes import OutcomeLog
from beit.finetune.evaluation.scores import compute_metrics
from beit.tests.unit.finetune.colours import write_images


@dataclass
class PartOfWorld:
    """One rank of several that reports its own sums only."""

    rank: int = 0
    world_size: int = 1
    longest: int = 0
    device: torch.device = torch.device("cpu")

    def max_of(self, values):
        return [max(self.longest, *values)]

    def gather(self, value):
        return [value]


def part(finished, *, rank=0, world_size=1, micro_batch_size=64, longest=0):
    classifier, stored = load_classifier(finished.run / "model")
    world = PartOfWorld(rank=rank, world_size=world_size, longest=longest)
    index = open_evaluation_data(str(finished.val), stored.class_names)
    settings = EvaluationConfig(micro_batch_size=micro_batch_size)
    loader = evaluation_loader(index, stored, world=world, settings=settings, reader=ReaderConfig(num_workers=0))
    calls = []
    classifier.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        outcomes = observe(classifier, loader, stored, num_batches=len(loader), world=world, log=OutcomeLog())
    return None if outcomes is None else compute_metrics(outcomes), len(calls)


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 3), (2, 64), (3, 4), (7, 2)])
def test_parts_add_up_to_the_whole(finished, world_size, micro_batch_size):
    whole, _ = part(finished)
    parts = [
        part(finished, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)[0]
        for rank in range(world_size)
    ]
    assert sum(share.num_images for share in parts) == whole.num_images == 20
    assert sum(share.top1 * share.num_images for share in parts) == pytest.approx(whole.top1 * 20)
    assert sum(share.loss * share.num_images for share in parts) == pytest.approx(whole.loss * 20, rel=1e-5)


def test_ranks_with_fewer_batches_still_take_part_in_every_forward_pass(finished):
    _, calls = part(finished, rank=0, world_size=3, micro_batch_size=2, longest=6)
    assert calls == 6


def test_more_ranks_than_images(finished):
    metrics, calls = part(finished, rank=0, world_size=30, longest=1)
    assert metrics is None
    assert calls == 1


def test_metrics_by_hand():
    class Fixed(torch.nn.Module):
        def forward(self, images):
            return torch.tensor([[9.0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6]])

    batch = {"images": torch.zeros(2, 3, 1, 1, dtype=torch.uint8), "labels": torch.tensor([0, 1]), "positions": [0, 1]}

    @dataclass
    class Stored:
        normalization = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

        class architecture:  # noqa: N801
            img_size = 1

    metrics = compute_metrics(observe(Fixed(), [batch], Stored(), num_batches=1, world=PartOfWorld(), log=OutcomeLog()))
    assert (metrics.top1, metrics.top5, metrics.num_images) == (0.5, 0.5, 2)
    logits = Fixed()(None)
    assert metrics.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, batch["labels"])), rel=1e-6)


def test_command_repeats_what_training_measured(finished, tmp_path):
    report = evaluate_model(finished.run, str(finished.val), out=tmp_path / "m.json")
    metrics = report.metrics
    kept = read_encoder_config(finished.run / "model").provenance["metrics"]
    assert metrics.top1 == kept["top1"]
    assert metrics.loss == pytest.approx(kept["loss"], rel=1e-5)
    written = json.loads((tmp_path / "m.json").read_text())
    assert {name: written[name] for name in ("top1", "top5", "loss", "num_images")} == asdict(metrics)
    assert written["num_images"] == 20
    assert "100.0 %" in report.as_table()


def test_classes_are_matched_by_name(finished, tmp_path):
    only_red = write_images(tmp_path / "val", ("red",), 4)
    assert evaluate_model(finished.run, str(only_red)).metrics.top1 == 1.0


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("nowhere", "{val}", "nowhere is not an encoder"),
        ("{run}", "nowhere", "nowhere does not exist"),
        ("{run}", "{other}", "classes that the model does not know"),
        ("{run}", "{flat}", "no labels found"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(finished, tmp_path, model, data, message):
    places = {
        "val": finished.val,
        "run": finished.run,
        "other": write_images(tmp_path / "other", ("green", "red"), 2),
        "flat": tmp_path / "flat" / "red",
    }
    write_images(tmp_path / "flat", ("red",), 2)
    with pytest.raises(InputError, match=message) as caught:
        evaluate_model(model.format(**places), data.format(**places), out=tmp_path / "out.json")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.json").exists()


def test_output_that_cannot_be_written_is_refused_first(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        evaluate_model("nowhere", "nowhere", out=tmp_path / "no" / "out.json")

"""Segmenters are measured exactly: every labelled pixel once, for any number of ranks, at the image's own size."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from beit.common.errors import InputError
from beit.common.reading.config import ReaderConfig
from beit.common.sources.config import SourceConfig
from beit.common.storage.samples import Record
from beit.finetune.commands import evaluate_command
from beit.finetune.evaluation.segmentation import (
    SceneReading,
    evaluate_segmenter,
    in_step,
    measure_masks,
    measured_sha256,
    observe_masks,
)
from beit.finetune.evaluation.segmentation_scores import segmentation_metrics
from beit.finetune.masks.classes import IGNORED
from beit.finetune.masks.index import open_evaluation_masks
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.segmentation.artifact import load_segmenter
from beit.finetune.segmentation.config import InferenceConfig
from beit.finetune.segmentation.inference import class_ids
from beit.tests.page_parts import PageParts
from beit.tests.unit.finetune.evaluation.streets import NAMES, SIZES, street, write_segmenter, write_streets
from beit.tests.unit.finetune.evaluation.test_confusion import by_hand
from beit.tests.unit.finetune.segmentation.scenes import png


@dataclass
class PartOfWorld:
    """One rank of several, which sees what earlier ones sent."""

    rank: int = 0
    world_size: int = 1
    sent: list = field(default_factory=list)
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self):
        return self.rank == 0

    def gather(self, value):
        self.sent.append(value)
        return self.sent


@dataclass
class Measured:
    root: object
    run: object
    val: object
    model: object
    info: object
    index: object


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """Seven images of five sizes, and a model."""
    root = tmp_path_factory.mktemp("streets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEIT_CACHE", str(root / "cache"))
        val, run = write_streets(root / "data/val", 7), write_segmenter(root / "run")
        model, _, info = load_segmenter(run)
        index = open_evaluation_masks(str(val), info.classes, MaskDataConfig(), reading=SourceConfig())
        yield Measured(root, run, val, model, info, index)


def outcomes_on(seven, world_size):
    world, reader = PartOfWorld(world_size=world_size), ReaderConfig(num_workers=0)
    for rank in range(world_size):
        found = observe_masks(seven.model, seven.index, seven.info, world=replace(world, rank=rank), reader=reader)
    return found


def predictions(seven, inference=None):
    for number in range(7):
        pixels, mask = street(number, SIZES[number % len(SIZES)])
        said = class_ids(seven.model, pixels.transpose(2, 0, 1), inference or seven.info.inference)
        yield mask, said


def test_numbers_equal_a_count_pixel_by_pixel(seven):
    metrics = measure_masks(seven.model, seven.index, seven.info, world=PartOfWorld(), reader=ReaderConfig())
    expected, _ = by_hand(list(predictions(seven)), len(NAMES))
    for name, value in expected.items():
        assert getattr(metrics, name) == pytest.approx(value, rel=1e-12), name
    assert 0 < metrics.miou < 1 and metrics.num_images == 7


@pytest.mark.parametrize("world_size", [2, 3, 7, 9])
def test_any_number_of_ranks_counts_every_image_once(seven, world_size):
    one, several = outcomes_on(seven, 1), outcomes_on(seven, world_size)
    assert several.positions.tolist() == list(range(7))
    for name in ("right", "true", "said", "confusion"):
        assert np.array_equal(getattr(one, name), getattr(several, name)), name


def test_a_rank_without_an_image_waits_for_nobody_and_alone_has_no_numbers(seven):
    few = seven.index.part(1)
    world = PartOfWorld(rank=0, world_size=2)
    assert observe_masks(seven.model, few, seven.info, world=world, reader=ReaderConfig(num_workers=0)) is None


class Together:
    """Ranks as threads that meet for every collective."""

    def __init__(self, count):
        self.barrier, self.values = threading.Barrier(count, timeout=30), [None] * count

    def rank(self, number):
        together = self

        class Rank:
            rank, world_size, device, is_main = number, len(together.values), torch.device("cpu"), number == 0

            def max_of(self, values):
                return [max(column) for column in zip(*self.gather(values), strict=True)]

            def gather(self, value):
                together.values[number] = value
                together.barrier.wait()
                found = list(together.values)
                together.barrier.wait()
                return found

        return Rank()


def test_where_weights_are_partitioned_all_ranks_make_as_many_passes(seven):
    """Images have different numbers of windows; a rank without any image takes part as well."""
    together, passes, found = Together(3), [0] * 3, [None] * 3

    def work(number):
        model, _, info = load_segmenter(seven.run)
        for weight in model.parameters():
            weight.ds_id = 0  # as DeepSpeed marks them

        def count(*_):
            passes[number] += 1

        model.register_forward_hook(count)
        index = seven.index.part(2)
        info = replace(info, inference=replace(info.inference, micro_batch_size=1))
        with torch.inference_mode():
            found[number] = observe_masks(
                model, index, info, world=together.rank(number), reader=ReaderConfig(num_workers=0)
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passes[0] == passes[1] == passes[2] > 10
    alone = observe_masks(
        seven.model, seven.index.part(2), seven.info, world=PartOfWorld(), reader=ReaderConfig(num_workers=0)
    )
    assert all(np.array_equal(one.confusion, alone.confusion) for one in found)


def test_weights_that_are_whole_let_no_rank_wait(seven):
    class Lonely(PartOfWorld):
        def max_of(self, values):
            raise AssertionError("nobody is to be asked")

    with in_step(seven.model, Lonely(world_size=2)):
        seven.model(torch.zeros(1, 3, 16, 16))


def test_the_command_prints_a_table_and_writes_json_and_a_page(seven, tmp_path):
    words = [seven.run, seven.val, "--out", tmp_path / "v.json", "--html", tmp_path / "v.html"]
    result = CliRunner().invoke(evaluate_command, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0
    metrics = segmentation_metrics(outcomes_on(seven, 1))
    assert f"{100 * metrics.miou:.1f} %" in result.stdout and "house" in result.stdout
    document = json.loads((tmp_path / "v.json").read_text())
    assert document["miou"] == metrics.miou and document["num_images"] == 7
    assert document["validation_sha256"] == measured_sha256(seven.index)
    assert [row["name"] for row in document["images"]] == [f"images/{number:03}.png" for number in range(7)]
    page = PageParts((tmp_path / "v.html").read_text())
    page.check(hidden=str(seven.root))
    assert len(page.of("img")) == 28 and "random weights" in page.text and "identity" in page.text


def test_how_images_are_segmented_can_be_told(seven):
    report = evaluate_segmenter(
        seven.run,
        str(seven.val),
        overrides=["evaluation.mode=whole", "evaluation.flip=true", "evaluation.scales=[1,2]"],
    )
    assert report.inference == InferenceConfig(mode="whole", flip=True, scales=(1.0, 2.0), stride=8)
    expected, _ = by_hand(list(predictions(seven, report.inference)), len(NAMES))
    assert report.metrics.miou == pytest.approx(expected["miou"])
    assert "each image at once, at scales 1, 2, mirrored as well" in " ".join(report.as_table().split())
    own = evaluate_segmenter(seven.run, str(seven.val))
    assert own.inference == seven.info.inference, "what is left out is the model's own"


def test_a_part_of_the_images_can_be_measured(seven):
    assert evaluate_segmenter(seven.run, str(seven.val), overrides=["data.num_val_images=3"]).metrics.num_images == 3
    with pytest.raises(InputError, match=r"data.num_val_images \(99\) must not exceed the 7 images of"):
        evaluate_segmenter(seven.run, str(seven.val), overrides=["data.num_val_images=99"])


def test_classes_are_matched_by_name(seven, tmp_path):
    turned = write_segmenter(tmp_path / "turned", names=NAMES[::-1])
    model, _, info = load_segmenter(turned)
    report = evaluate_segmenter(turned, str(seven.val))
    pairs = []
    for number in range(7):
        pixels, mask = street(number, SIZES[number % len(SIZES)])
        mask = np.where(mask == IGNORED, IGNORED, 2 - mask).astype(np.uint8)
        pairs.append((mask, class_ids(model, pixels.transpose(2, 0, 1), info.inference)))
    assert report.metrics.miou == pytest.approx(by_hand(pairs, 3)[0]["miou"])


def test_an_image_wholly_ignored_counts_for_nothing_and_is_said(seven, tmp_path):
    val = write_streets(tmp_path / "val", 4)
    Image.fromarray(np.full(SIZES[2][::-1], IGNORED, np.uint8)).save(val / "annotations/002.png")
    report = evaluate_segmenter(seven.run, str(val))
    assert (report.metrics.num_images, report.metrics.num_ignored_images) == (4, 1)
    assert "1 image without any, which changes no number" in " ".join(report.as_table().split())


def test_an_image_of_one_pixel_is_read_without_a_warning(seven, recwarn):
    pixels, mask = street(0, (1, 1))
    record = Record(key="0", shard="s", epoch=0, view_index=0, image_bytes=png(pixels), mask_bytes=png(mask))
    torch.from_numpy(SceneReading(decoder=seven.index.decoder)(record)["images"])
    assert not recwarn.list


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "evaluation.mod=whole"], "unknown key 'evaluation.mod'.*did you mean 'evaluation.mode'"),
        (["--set", "evaluation.mode=hole"], "evaluation.mode .* must be one of 'slide', 'whole'"),
        (["--set", "evaluation.scales=0"], "evaluation.scales .* must be a list"),
        (["--set", "data.val=x"], "data.val is of trainings"),
        (["--set", "data.num_labels=3"], "data.num_labels is of trainings"),
        (["--set", "train.steps=3"], "unknown key 'train.steps'"),
        (["--class-names", "nowhere.json"], "nowhere.json"),
        (["--out", "nowhere/v.json"], "does not exist"),
    ],
)
def test_bad_input_is_one_clear_line(seven, words, message):
    with pytest.raises(InputError, match=message) as caught:
        CliRunner().invoke(evaluate_command, [str(seven.run), str(seven.val), *words], catch_exceptions=False)
    assert "\n" not in str(caught.value)


def test_settings_of_segmenters_are_refused_for_classifiers(finished):
    with pytest.raises(InputError, match=r"--set evaluation.flip=true is for segmenters, and .* is none"):
        words = [str(finished.run), str(finished.val), "--set", "evaluation.flip=true"]
        CliRunner().invoke(evaluate_command, words, catch_exceptions=False)


def test_data_without_masks_are_refused_and_nothing_is_written(seven, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(street(0, (20, 20))[0]).save(tmp_path / "photos/a.png")
    with pytest.raises(InputError) as caught:
        evaluate_segmenter(seven.run, str(tmp_path / "photos"), out=tmp_path / "v.json")
    assert "mask" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "v.json").exists()

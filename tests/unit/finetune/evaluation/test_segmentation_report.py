"""What is said of a segmenter on a terminal and in JSON: which mean it is, how far it is known, and what is wrong."""

import json
import math

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.storage.documents import json_bytes
from beit.finetune.evaluation.segmentation_report import unpacked_counts
from beit.finetune.evaluation.segmentation_scores import DEFINITIONS, miou_interval
from beit.tests.unit.finetune.evaluation.scenes import mask_report


def flat(text):
    return " ".join(text.split())


def test_the_table_says_which_mean_it_is_and_names_the_others():
    report, _ = mask_report(blank=(3,))
    table = report.as_table()
    assert all(len(line) <= 80 for line in table.splitlines())
    text = flat(table)
    metrics = report.metrics
    for value in (metrics.miou, metrics.miou_true_classes, metrics.miou_all_classes, metrics.miou_per_image):
        assert f"{100 * value:.1f} %" in text
    assert "summed over the whole set, then the mean over all 3 classes, 1 of them only in predictions, as 0" in text
    assert "95 % interval" in text and "chance (always saying" in text
    assert f"{metrics.num_pixels:,} labelled pixels of 20 images; 1 image without any, which changes no number" in text
    assert "windows of 192 px" in text


def test_classes_come_worst_first_and_absent_ones_last():
    report, _ = mask_report(names=("a", "b", "c", "d", "e", "f", "g"))
    report.scores[2] = report.scores[2].__class__(
        iou=math.nan, accuracy=math.nan, precision=math.nan, share=0.0, num_images=0
    )
    ious = [score.iou for _, score in report.rows()]
    assert math.isnan(ious[-1]) and ious[:-1] == sorted(ious[:-1])
    lines = report.as_table().splitlines()
    assert lines[-1].split() == ["c", "-", "-", "-", "0.0", "%", "0"]
    assert "the 6 of 7 classes that occur" in flat(report.as_table())


def test_of_many_classes_the_worst_are_shown():
    report, _ = mask_report(names=tuple(f"class {number}" for number in range(150)))
    assert "worst 10 classes of 150" in report.as_table()
    assert len(report.as_table().splitlines()) < 25
    long, _ = mask_report(names=("a name that is longer than anybody would like to type", "飛行機", "tree"))
    assert all(len(line) <= 80 for line in long.as_table().splitlines())


def test_how_images_were_segmented_is_said():
    assert mask_report(mode="whole")[0].how() == "each image at once"
    several = mask_report(stride=64, scales=(0.75, 1.0), flip=True, short_side=300)[0].how()
    assert several == "windows of 192 px every 64 px, short side 300 px, at scales 0.75, 1, mirrored as well"


def test_json_holds_all_of_it_and_no_nan():
    report, _ = mask_report(blank=(0,), names=("sky", "road", "tree", "nowhere", "said"))
    document = json.loads(json_bytes(report.as_json()), parse_constant=pytest.fail)
    assert document["task"] == "segmentation" and document["miou"] == report.metrics.miou
    assert document["miou_definitions"] == DEFINITIONS
    assert document["miou_interval"] == list(report.interval)
    assert np.array_equal(document["confusion"], report.outcomes.confusion)
    assert [row["name"] for row in document["per_class"]] == ["sky", "road", "tree", "nowhere", "said"]
    assert document["images"][0] == {"name": "/mnt/disk/val/images/0.jpg", "miou": None, "accuracy": None, "share": 0.0}
    assert document["inference"]["crop_px"] == 192 and document["inference"]["scales"] == [1.0]
    first = document["confused_classes"][0]
    assert first["predicted"] == "said" and 0 < first["share"] < 1


def test_counts_of_single_images_come_back():
    report, _ = mask_report()
    found = unpacked_counts(json.loads(json_bytes(report.as_json())))
    for name in ("positions", "right", "true", "said"):
        assert np.array_equal(getattr(found, name), getattr(report.outcomes, name))
    assert miou_interval(found) == report.interval
    assert unpacked_counts({}) is None


def test_one_image_has_no_interval():
    report, _ = mask_report(num_images=1)
    assert report.interval is None
    assert "95 %" not in report.as_table() and "chance" in report.as_table()


def test_masks_without_a_labelled_pixel_are_refused():
    with pytest.raises(InputError, match="all pixels of the masks of /mnt/disk/val are ignored"):
        mask_report(num_images=2, blank=(0, 1))

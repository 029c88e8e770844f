import dataclasses
import logging

import pytest

from beit.common.forecast.hardware import named, this_machine
from beit.common.vit.config import ViTConfig
from beit.finetune.forecast import load
from beit.finetune.probe.forecast import forecast_probe
from beit.tests.unit.finetune.probe.test_run import probe

SHAPE = ViTConfig(img_size=64, patch_size=8, embed_dim=128, depth=4, num_heads=4)


def forecast(images=1000, *, classes=10, is_linear=True, hardware=None):
    place = hardware or this_machine(num_devices=1)
    return forecast_probe(
        load(None), SHAPE, num_train=images, num_val=200, num_classes=classes, is_linear=is_linear, hardware=place
    )


def test_features_are_counted_exactly_and_take_memory():
    small, large = forecast(1000), forecast(100_000)
    assert small.feature_bytes == 1200 * 4 * 2 * 128 * 4
    assert large.memory_bytes - small.memory_bytes > large.feature_bytes - small.feature_bytes
    assert large.seconds > 10 * small.seconds


def test_classifiers_of_many_classes_take_longer_than_neighbours():
    assert forecast(classes=1000).seconds > 2 * forecast(classes=1000, is_linear=False).seconds


def test_the_line_says_what_is_known():
    found = dataclasses.replace(forecast(), seconds=90.0, memory_bytes=6e8)
    assert found.line().startswith("expected: about 90 s (assumed: ")
    assert found.line().endswith(") and 600 MB of memory; 4.92 MB of disk")
    assert forecast(hardware=named("A100")).memory_bytes is None


def test_it_is_said_before_features_are_computed_and_not_where_they_are_kept(finished, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        probe("knn", finished, tmp_path / "run")
        assert sum(line.startswith("expected: about") for line in caplog.messages) == 1
        probe("linear-probe", finished, tmp_path / "run")
    assert sum(line.startswith("expected: about") for line in caplog.messages) == 1


@pytest.mark.parametrize(("width", "depth", "found"), [(128, 4, 957e6), (192, 6, 1384e6)])
def test_memory_of_neighbours_among_50_000_images_is_what_was_measured(width, depth, found):
    shape = ViTConfig(img_size=32, patch_size=8, embed_dim=width, depth=depth, num_heads=depth)
    expected = forecast_probe(load(None), shape, num_train=50_000, num_val=5000, num_classes=10, is_linear=False)
    assert expected.memory_bytes == pytest.approx(found, rel=0.15)


def test_many_features_are_kept_once():
    small, large = forecast(100_000), forecast(1_000_000)
    more = large.feature_bytes - small.feature_bytes
    assert more < large.memory_bytes - small.memory_bytes < 2 * more

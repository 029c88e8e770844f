import logging

import pytest
import torch

from beit.common.processes.distributed import World
from beit.common.training import engine
from beit.common.training.engine import choose_precision, has_native_bf16

CPU = torch.device("cpu")
WORLD = World(rank=0, local_rank=0, world_size=1, device=CPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, True),
        ({"bf16": True}, True),
        ({"avx512_bf16": True}, False),
        ({}, False),
    ],
)
def test_bf16_counts_only_where_a_processor_has_units_for_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_native_bf16(CPU) is expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_only_in_hardware(monkeypatch, native, expected):
    monkeypatch.setattr(engine, "has_native_bf16", lambda *_: native)
    assert choose_precision("auto", WORLD) == expected


@pytest.mark.parametrize(
    ("setting", "before", "expected"),
    [("auto", None, "fp32"), ("auto", "fp32", "fp32"), ("auto", "bf16", "bf16"), ("fp32", "bf16", "fp32")],
)
def test_a_run_that_was_begun_in_bf16_goes_on_in_it_where_auto_chose_it_before(monkeypatch, setting, before, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert choose_precision(setting, WORLD, before=before) == expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert choose_precision(setting, WORLD, before=before) == "fp32"


def test_a_choice_is_kept_and_an_emulated_one_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(engine, "has_native_bf16", lambda *_: False)
    with caplog.at_level(logging.WARNING):
        assert choose_precision("fp32", WORLD) == "fp32"
        assert not caplog.records
        assert choose_precision("bf16", WORLD) == "bf16"
    assert "slower than fp32" in caplog.text


def test_the_rank_without_bf16_decides_for_all(monkeypatch):
    class Two(World):
        def max_of(self, values):
            return [1.0]

    monkeypatch.setattr(engine, "has_native_bf16", lambda *_: True)
    assert choose_precision("auto", Two(rank=0, local_rank=0, world_size=2, device=CPU)) == "fp32"


@pytest.mark.parametrize(
    ("capabilities", "before", "expected"),
    [
        ({"avx512_bf16": True}, "bf16", "bf16"),
        ({"avx512_bf16": True}, "fp32", "fp32"),
        ({"avx512_bf16": True}, None, "fp32"),
        ({}, "bf16", "fp32"),
        ({"amx_bf16": True}, "fp32", "bf16"),
    ],
)
def test_a_run_begun_in_bf16_goes_on_in_it_where_the_processor_has_it(monkeypatch, capabilities, before, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision("auto", WORLD, before=before) == expected

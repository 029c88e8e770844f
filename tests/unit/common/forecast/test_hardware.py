"""What a run is to happen on."""

import pytest

from beit.common.errors import InputError
from beit.common.forecast.hardware import check_name, data_sheet, known_peak_flops, named, product_flops, this_machine


@pytest.mark.parametrize(
    ("name", "gigabytes", "precision"),
    [
        ("A100", 80, "bf16"),
        ("NVIDIA A100-SXM4-40GB", 40, "bf16"),
        ("V100-16GB", 16, "fp16"),
        ("NVIDIA H100 80GB HBM3", 80, "bf16"),
        ("nvidia l40s", 48, "bf16"),
        ("Tesla T4", 16, "fp16"),
    ],
)
def test_a_gpu_is_known_by_its_name(name, gigabytes, precision):
    found = named(name, num_devices=16, num_machines=2)
    assert (found.memory_bytes, found.precision) == (gigabytes * 10**9, precision)
    assert found.flops is not None and found.flops_source.startswith("assumed: ")
    assert (found.devices_per_machine, found.cores_per_device) == (8, 8)


def test_a_card_is_taken_for_the_one_it_is():
    assert data_sheet("NVIDIA L4") != data_sheet("NVIDIA L40S")
    assert known_peak_flops("NVIDIA H200", "fp32") == 67e12 and known_peak_flops("GeForce 4711", "bf16") is None


def test_an_unknown_card_has_no_speed_and_is_refused_where_it_must_have_one():
    assert named("GeForce 4711").flops is None and named("GeForce 4711").memory_bytes is None
    with pytest.raises(InputError, match=r"--gpu \(RTX 4091\) must contain .*did you mean RTX 4090\?"):
        check_name("RTX 4091")


def test_devices_must_be_shared_evenly():
    with pytest.raises(InputError, match="9 devices cannot be shared evenly by 2 machines"):
        named("A100", num_devices=9, num_machines=2)


def test_another_number_format_has_another_speed():
    card = named("A100")
    assert card.in_precision("fp32").flops < card.flops
    assert card.in_precision("bf16") is card


def test_this_machine_has_cores_memory_and_a_speed():
    here = this_machine(num_devices=2)
    assert here.cores >= 1 and here.num_devices == 2 and here.flops
    assert product_flops() > 1e8

"""Batch statistics over ranks and alone, and what is done where there is only one image."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import InputError
from beit.common.processes.distributed import apart
from beit.finetune.segmentation.norm import RankBatchNorm, build_norm, require_statistics
from beit.tests.rank_norm import NUM_RANKS, build, images, loss_of


def test_alone_it_is_the_batch_norm_of_torch():
    ours, theirs = RankBatchNorm(3), torch.nn.BatchNorm2d(3)
    for _ in range(2):
        values = torch.randn(4, 3, 5, 5)
        torch.testing.assert_close(ours(values), theirs(values), rtol=0, atol=0)
    assert all(
        torch.equal(*pair) for pair in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(values), theirs(values), rtol=0, atol=0)


@pytest.mark.launch
def test_two_ranks_are_as_one_with_the_whole_batch(tmp_path):
    command = [sys.executable, "-m", "beit.tests.rank_norm"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path / "store"), str(tmp_path / "out.safetensors")]
    ranks = [subprocess.Popen([*command, str(rank), *arguments], env=environment) for rank in range(NUM_RANKS)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    found, model = load_file(tmp_path / "out.safetensors"), build()
    for _ in range(2):
        model.zero_grad()
        pixels = images().requires_grad_()
        output = model(pixels)
        loss_of(output, slice(None)).backward()
    expected = {f"grad/{name}": parameter.grad for name, parameter in model.named_parameters()}
    expected |= {"output": output.detach(), "images": pixels.grad} | model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_step_that_is_not_finite_leaves_the_statistics_alone():
    norm = RankBatchNorm(2)
    norm(torch.randn(2, 2, 3, 3))
    before = norm.running_mean.clone(), norm.running_var.clone()
    values = torch.randn(2, 2, 3, 3)
    values[0, 1, 0, 0] = float("inf")
    norm(values)
    assert norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()
    assert norm.running_mean[1] == before[0][1] and norm.running_mean[0] != before[0][0]


def test_no_other_rank_is_asked_where_a_rank_tries_something_by_itself():
    norm = RankBatchNorm(2)
    with apart():
        norm(torch.randn(1, 2, 1, 1))
    assert norm.num_batches_tracked == 0


def test_one_value_per_channel_is_refused_in_a_line():
    with pytest.raises(InputError, match=r"train.micro_batch_size .*head.norm=group"):
        RankBatchNorm(2)(torch.randn(1, 2, 1, 1))
    with pytest.raises(InputError, match=r"head.norm \(batch\) needs at least 2 images"):
        require_statistics(build_norm("batch", 4).modules(), 1)
    require_statistics(build_norm("batch", 4).modules(), 2)
    require_statistics(build_norm("group", 4).modules(), 1)


@pytest.mark.parametrize("channels", [1, 24, 48, 768])
def test_groups_divide_the_channels(channels):
    assert build_norm("group", channels)(torch.randn(1, channels, 2, 2)).shape[1] == channels

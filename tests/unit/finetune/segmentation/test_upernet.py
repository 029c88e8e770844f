"""The convolution that joins maps of several sizes, against resizing, joining and convolving them."""

import pytest
import torch

from beit.finetune.segmentation.heads import resize
from beit.finetune.segmentation.upernet import JoiningConv2d


@pytest.mark.parametrize(
    "sizes", [[(16, 16), (8, 8), (4, 4), (2, 2)], [(7, 12), (3, 5), (1, 1)], [(5, 4), (9, 7), (5, 4)]], ids=str
)
def test_joining_convolution_is_one_on_resized_maps_side_by_side(sizes):
    torch.manual_seed(0)
    conv = JoiningConv2d(3 * len(sizes), 4, 3, padding=1, bias=False)
    maps = [torch.randn(2, 3, *size, requires_grad=True) for size in sizes]
    joined = torch.cat([resize(one, sizes[0]) for one in maps], dim=1)
    expected = torch.nn.functional.conv2d(joined, conv.weight, padding=1)
    found = conv(maps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    inputs = [*maps, conv.weight]
    weight = torch.randn_like(expected)
    for own, wanted in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)

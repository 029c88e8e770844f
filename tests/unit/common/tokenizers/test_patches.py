import torch

from beit.common.tokenizers.patches import PatchMeans


def test_a_word_that_was_never_seen_is_painted_by_the_mean_of_all() -> None:
    means = PatchMeans(3, 2)
    images = torch.zeros(1, 3, 2, 4, dtype=torch.uint8)
    images[..., 2:] = 100
    means.add(images, torch.tensor([[[0, 2]]]))
    found = means.result()
    assert [int(patch.float().mean()) for patch in found] == [0, 50, 100] and found.dtype == torch.uint8

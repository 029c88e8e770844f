"""Images of any size, segmented: against the definition written out, and within bounds of memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from beit.common.errors import InputError
from beit.common.images.large.tiles import window_starts
from beit.common.vit.config import Normalization, ViTConfig
from beit.finetune.segmentation import inference
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.inference import class_ids, likeliest, looked_at_size, segment
from beit.finetune.segmentation.model import Segmenter

SHAPE = ViTConfig(
    img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, pos_bias="per_block", use_mask_token=False,
    init="finetune", use_abs_pos_emb=True,
)  # fmt: skip
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZES = [(32, 32), (70, 33), (20, 50), (1, 1), (3, 200), (64, 97), (200, 7)]


def segmenter(kind="linear", num_classes=5, shape=SHAPE):
    torch.manual_seed(3)
    model = Segmenter(shape, num_classes=num_classes, head=resolve_head(HeadConfig(kind=kind), shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "table" in name or name == "pos_embed":
                parameter.normal_()
            elif parameter.ndim > 1:
                parameter.mul_(3)
    model.normalization = Normalization(MEAN, STD)
    return model.eval()


def picture(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (3, *size), dtype=np.uint8)


def by_definition(model, pixels, settings):
    """The same, at the full size of everything, one window at a time."""
    own, total = pixels.shape[1:], 0
    for scale in settings.scales:
        size = looked_at_size(own, settings, scale)
        for is_mirrored in (False, True)[: 1 + settings.flip]:
            image = torch.from_numpy(pixels)
            image = image.flip(2) if is_mirrored else image
            if size != own:
                image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
            image = (image / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
            side = SHAPE.img_size
            window = (side, side) if settings.mode == "slide" else tuple(-(-length // 8) * 8 for length in size)
            padded = F.pad(image, (0, max(0, window[1] - size[1]), 0, max(0, window[0] - size[0])))
            logits, counts = torch.zeros(model.num_classes, *padded.shape[1:]), torch.zeros(padded.shape[1:])
            stride = settings.stride or side * 2 // 3
            rows = -(-max(padded.shape[1] - window[0], 0) // stride) + 1
            columns = -(-max(padded.shape[2] - window[1], 0) // stride) + 1
            for row in range(rows):
                for column in range(columns):
                    bottom = min(row * stride + window[0], padded.shape[1])
                    right = min(column * stride + window[1], padded.shape[2])
                    place = (slice(bottom - window[0], bottom), slice(right - window[1], right))
                    with torch.no_grad():
                        found = model(padded[None, :, *place])
                    logits[:, *place] += F.interpolate(found, window, mode="bilinear", align_corners=False)[0]
                    counts[*place] += 1
            logits = (logits / counts)[:, : size[0], : size[1]]
            logits = F.interpolate(logits[None], own, mode="bilinear", align_corners=False)[0]
            total = total + (logits.flip(2) if is_mirrored else logits).softmax(0)
    return total / (len(settings.scales) * (1 + settings.flip))


def probabilities(model, pixels, settings):
    strips = list(segment(model, pixels, settings))
    tops = [strip.top for strip in strips]
    assert tops == list(np.cumsum([0, *(strip.probabilities.shape[1] for strip in strips[:-1])]))
    return torch.cat([strip.probabilities for strip in strips], dim=1)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        InferenceConfig(),
        InferenceConfig(stride=32),
        InferenceConfig(stride=5, micro_batch_size=3),
        InferenceConfig(mode="whole"),
        InferenceConfig(short_side=40),
        InferenceConfig(mode="whole", short_side=20, flip=True),
        InferenceConfig(scales=(0.5, 1.0, 1.75), flip=True, stride=20),
    ],
    ids=str,
)
def test_probabilities_are_those_of_the_definition(monkeypatch, size, settings):
    model, pixels = segmenter(), picture(size)
    expected = by_definition(model, pixels, settings)
    monkeypatch.setattr(inference, "MAX_STRIP_BYTES", 4 * 5 * size[1] * 6)  # several strips
    found = probabilities(model, pixels, settings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    ids = class_ids(model, pixels, settings)
    assert ids.dtype == np.uint8 and ids.shape == size
    best = expected.topk(2, dim=0).values
    sure = (best[0] - best[1] > 1e-4).numpy()
    assert np.array_equal(ids[sure], expected.argmax(0).numpy()[sure]) and sure.mean() > 0.9


@pytest.mark.parametrize("kind", ["fpn", "upernet"])
def test_finer_logits_are_laid_out_likewise(kind):
    model, pixels, settings = segmenter(kind), picture((70, 45)), InferenceConfig()
    torch.testing.assert_close(
        probabilities(model, pixels, settings), by_definition(model, pixels, settings), rtol=1e-4, atol=2e-5
    )


def test_same_every_time_and_whatever_the_batch():
    model, pixels = segmenter("fpn"), picture((90, 120))
    once, again, other = (probabilities(model, pixels, InferenceConfig(micro_batch_size=size)) for size in (4, 4, 1))
    assert torch.equal(once, again)
    torch.testing.assert_close(once, other, rtol=1e-4, atol=1e-6)


def test_windows_lie_as_in_mmsegmentation():
    assert window_starts(512, 512, 341) == [0] == window_starts(100, 512, 341)
    assert window_starts(513, 512, 341) == [0, 1]
    assert window_starts(2048, 512, 341) == [0, 341, 682, 1023, 1364, 1536]
    assert window_starts(853, 512, 341) == [0, 341]


def test_long_side_is_at_most_four_short_sides():
    settings = InferenceConfig(short_side=512)
    assert looked_at_size((300, 600), settings) == (512, 1024)
    assert looked_at_size((1, 20_000), settings) == (1, 2048)
    assert looked_at_size((1, 1), settings) == (512, 512)
    assert looked_at_size((100, 300), InferenceConfig(), 0.5) == (50, 150)


def test_autocast_around_it_is_heeded():
    model, pixels = segmenter(), picture((40, 40))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = probabilities(model, pixels, InferenceConfig())
    full = probabilities(model, pixels, InferenceConfig())
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0, atol=0.1)


def test_weights_of_half_precision_are_used():
    pixels, settings = picture((50, 40)), InferenceConfig()
    expected = probabilities(segmenter(), pixels, settings)
    found = probabilities(segmenter().bfloat16(), pixels, settings)
    assert found.dtype == torch.float32 and 0 < (found - expected).abs().max() < 0.1


def test_pixels_that_must_not_be_written_to_are_read(recwarn):
    pixels = picture((40, 40))
    pixels.flags.writeable = False
    class_ids(segmenter(), pixels, InferenceConfig())
    assert not recwarn.list


def test_too_large_for_a_whole_look_is_refused_in_a_line():
    with pytest.raises(InputError, match=r"5000x4000 pixels is too large .*evaluation.mode=slide"):
        class_ids(segmenter(), np.zeros((3, 4000, 5000), np.uint8), InferenceConfig(mode="whole"))


def test_images_too_large_for_a_whole_look_are_known_beforehand():
    whole = InferenceConfig(mode="whole")
    inference.require_room(whole, SHAPE, 900_000)
    inference.require_room(InferenceConfig(), SHAPE, 10**9)
    inference.require_room(InferenceConfig(mode="whole", short_side=64), SHAPE, 10**9)
    for settings, pixels in ((whole, 1_100_000), (InferenceConfig(mode="whole", scales=(1.0, 2.0)), 300_000)):
        with pytest.raises(InputError, match=r"an image of [\d,]+ pixels is too large to be looked at as a whole"):
            inference.require_room(settings, SHAPE, pixels)


@pytest.mark.parametrize("size", [(70, 33), (20, 20)])
def test_windows_with_gaps_between_them_are_refused(size):
    with pytest.raises(InputError, match=r"evaluation.stride \(33\) must not exceed the windows, 32 px"):
        class_ids(segmenter(), picture(size), InferenceConfig(stride=33))
    assert class_ids(segmenter(), picture(size), InferenceConfig(mode="whole", stride=33)).shape == size


def test_few_rows_of_windows_are_kept(monkeypatch):
    kept = []
    averaged = inference._Look._averaged

    def watched(self, first, last):
        found = averaged(self, first, last)
        kept.append(len(self._rows))
        return found

    monkeypatch.setattr(inference._Look, "_averaged", watched)
    monkeypatch.setattr(inference, "MAX_STRIP_BYTES", 4 * 5 * 40 * 3)
    class_ids(segmenter(), picture((300, 40)), InferenceConfig())
    assert max(kept) == 2


_LARGE = """
import resource
from dataclasses import replace
import numpy as np
from beit.finetune.segmentation.config import InferenceConfig
from beit.finetune.segmentation.inference import segment
from beit.tests.unit.finetune.segmentation.test_inference import SHAPE, segmenter
model = segmenter("fpn", 150, replace(SHAPE, img_size=512, patch_size=16))
pixels = np.zeros((3, 3870, 5160), np.uint8)
for strip in segment(model, pixels[:, :64, :64], InferenceConfig()):
    pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sum(strip.probabilities.shape[1] for strip in segment(model, pixels, InferenceConfig()))
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_twenty_megapixels_and_150_classes_stay_below_a_gigabyte():
    result = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True)
    rows, peak = map(int, result.stdout.split())
    assert rows == 3870 and peak < 1e9, peak  # all probabilities at once would take 12 GB


def test_the_likeliest_class_is_the_first_of_equals():
    scores = torch.randint(0, 3, (7, 20, 30), generator=torch.Generator().manual_seed(0)).float()
    wanted = scores.numpy().argmax(0)
    found = likeliest(scores)
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), wanted)

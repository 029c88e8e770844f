import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.jitter import FACTOR_ONE
from beit.common.rng import CounterRng
from beit.common.views import (
    VIEW_DTYPE,
    AugmentConfig,
    compute_canary,
    crop_crc,
    draw_view,
    mean_luma,
    render_view,
    replay_versions,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "canary.json"


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def make_view(**fields: int) -> np.void:
    view = np.zeros(1, VIEW_DTYPE)[0]
    for name in ("bright", "contrast", "sat"):
        view[name] = FACTOR_ONE
    for name, value in fields.items():
        view[name] = value
    return view


def box_of(view: np.void) -> tuple[int, int, int, int]:
    return tuple(int(view[name]) for name in ("left", "top", "w", "h"))


def test_record_layout_is_the_documented_one() -> None:
    assert VIEW_DTYPE.itemsize == 36
    offsets = {name: VIEW_DTYPE.fields[name][1] for name in VIEW_DTYPE.names}
    assert offsets == {
        "left": 0, "top": 2, "w": 4, "h": 6, "flip": 8, "jitter_order": 9,
        "bright": 10, "contrast": 12, "sat": 14, "crc_crop": 16, "luma": 20,
    }  # fmt: skip


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (5, 3), (32, 32), (500, 375), (65535, 1), (65535, 65535)])
def test_boxes_lie_inside_the_image_and_have_pixels(size: tuple[int, int]) -> None:
    for number in range(50):
        left, top, width, height = box_of(draw_view(CounterRng(0, "key", number), *size, AugmentConfig()))
        assert width >= 1 and height >= 1
        assert left + width <= size[0] and top + height <= size[1]


def test_same_stream_same_view_and_a_golden_one() -> None:
    first = draw_view(CounterRng(3, "shard/key", 5), 500, 375, AugmentConfig())
    assert first == draw_view(CounterRng(3, "shard/key", 5), 500, 375, AugmentConfig())
    assert first != draw_view(CounterRng(3, "shard/key", 6), 500, 375, AugmentConfig())
    # Stored views must stay what they were: a change here is a change of the format.
    assert first.item()[:9] == (99, 8, 170, 158, 0, 3, 13765, 13443, 14302)


def test_area_and_aspect_follow_the_configured_distribution() -> None:
    augment = AugmentConfig()
    boxes = np.array([box_of(draw_view(CounterRng(0, n), 1000, 800, augment)) for n in range(4000)], dtype=float)
    area = boxes[:, 2] * boxes[:, 3] / 800_000
    log_aspect = np.log(boxes[:, 2] / boxes[:, 3])
    assert area.min() > 0.079 and area.max() <= 1.0
    # The means of 200,000 draws by torchvision's rules; below 0.54 because large boxes rarely fit.
    assert abs(area.mean() - 0.4524) < 0.015
    assert np.abs(log_aspect).max() < math.log(4 / 3) + 0.01
    assert abs(log_aspect.mean() - 0.0281) < 0.01


def test_flips_orders_and_factors_cover_their_ranges() -> None:
    views = np.array([draw_view(CounterRng(1, n), 64, 64, AugmentConfig()) for n in range(3000)])
    assert abs(views["flip"].mean() - 0.5) < 0.03
    assert np.bincount(views["jitter_order"], minlength=6).min() > 400
    for name in ("bright", "contrast", "sat"):
        factors = views[name] / FACTOR_ONE
        assert factors.min() > 0.599 and factors.max() < 1.401 and abs(factors.mean() - 1.0) < 0.02


def test_strength_zero_means_factor_exactly_one_and_leaves_the_rest_alone() -> None:
    plain = draw_view(CounterRng(0, "x"), 64, 64, AugmentConfig(brightness=0, contrast=0, saturation=0, flip=0))
    full = draw_view(CounterRng(0, "x"), 64, 64, AugmentConfig())
    assert [int(plain[name]) for name in ("flip", "bright", "contrast", "sat")] == [0] + [FACTOR_ONE] * 3
    assert box_of(plain) == box_of(full) and plain["jitter_order"] == full["jitter_order"]
    half = draw_view(CounterRng(0, "x"), 64, 64, AugmentConfig(brightness=0))
    assert half["bright"] == FACTOR_ONE and half["contrast"] == full["contrast"] and half["sat"] == full["sat"]


def test_min_crop_is_respected() -> None:
    views = [draw_view(CounterRng(0, n), 32, 32, AugmentConfig(min_crop_px=16)) for n in range(200)]
    assert min(min(view["w"], view["h"]) for view in views) >= 16


def test_impossible_crops_fall_back_to_the_centre() -> None:
    augment = AugmentConfig(scale=(1.0, 1.0))
    assert box_of(draw_view(CounterRng(0), 100, 10, augment)) == (43, 0, 13, 10)
    assert box_of(draw_view(CounterRng(0), 10, 100, augment)) == (0, 43, 10, 13)


@pytest.mark.parametrize("size", [(0, 5), (5, 65536)])
def test_sizes_that_do_not_fit_the_record_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="65535"):
        draw_view(CounterRng(0), *size, AugmentConfig())


@pytest.mark.parametrize(
    "settings",
    [{"scale": (0.0, 1.0)}, {"scale": (0.5, 0.1)}, {"ratio": (0.0, 1.0)}, {"flip": 1.5}, {"contrast": -0.1},
     {"jitter_scope": "view"}, {"min_crop_px": 0}],
)  # fmt: skip
def test_bad_settings_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"augment.{next(iter(settings))}"):
        AugmentConfig(**settings)


def test_render_is_crop_then_resize_then_flip() -> None:
    image = noise(90, 70)
    view = make_view(left=11, top=7, w=50, h=40)
    expected = np.asarray(image.crop((11, 7, 61, 47)).resize((224, 224), Image.Resampling.BICUBIC))
    rendered = render_view(image, view)
    assert rendered.dtype == np.uint8 and rendered.flags.writeable and rendered.flags.c_contiguous
    assert np.array_equal(rendered, expected)
    view["flip"] = 1
    assert np.array_equal(render_view(image, view), expected[:, ::-1])
    token_view = render_view(image, view, img_size=112, resample="lanczos")
    assert np.array_equal(
        token_view, np.asarray(image.crop((11, 7, 61, 47)).resize((112, 112), Image.Resampling.LANCZOS))[:, ::-1]
    )


def test_jitter_scope_changes_only_where_the_contrast_mean_comes_from() -> None:
    image = noise(90, 70)
    view = make_view(left=0, top=0, w=30, h=30, contrast=20000, sat=12000)
    assert not np.array_equal(render_view(image, view), render_view(image, view, jitter_scope="image"))
    whole = make_view(w=90, h=70, contrast=12000)
    difference = render_view(image, whole).astype(int) - render_view(image, whole, jitter_scope="image")
    assert np.abs(difference).max() <= 3  # the same mean; only rounding before or after the resize differs


def test_one_pixel_crop_renders() -> None:
    pixels = render_view(noise(32, 32), make_view(left=31, top=31, w=1, h=1))
    assert (pixels == pixels[0, 0]).all()


@pytest.mark.parametrize(
    "fields",
    [{"w": 0, "h": 5}, {"left": 80, "w": 20, "h": 5}, {"top": 70, "w": 1, "h": 1}, {"w": 5, "h": 5, "jitter_order": 6},
     {"w": 5, "h": 5, "sat": 40000}],
)  # fmt: skip
def test_records_that_do_not_fit_are_bad_samples(fields: dict[str, int]) -> None:
    with pytest.raises(BadSample, match="view-mismatch"):
        render_view(noise(90, 70), make_view(**fields))


def test_image_must_be_rgb_or_grey() -> None:
    with pytest.raises(ValueError, match="mode"):
        render_view(Image.new("LA", (9, 9)), make_view(w=5, h=5))


def test_crop_crc_is_over_the_source_pixels_and_can_be_checked_while_rendering() -> None:
    image = noise(90, 70)
    view = make_view(left=11, top=7, w=50, h=40, flip=1, bright=9000)
    view["crc_crop"] = crop_crc(image, view)
    assert view["crc_crop"] == zlib.crc32(np.asarray(image)[7:47, 11:61].tobytes())
    assert np.array_equal(render_view(image, view, check_crop=True), render_view(image, view))
    other = image.copy()
    other.putpixel((30, 30), (0, 0, 0))
    with pytest.raises(BadSample, match="crc-mismatch"):
        render_view(other, view, check_crop=True)


@pytest.mark.parametrize("side", [8, 48, 224])
@pytest.mark.parametrize("box", [(0, 0, 90, 70), (3, 5, 31, 60), (89, 69, 1, 1), (10, 0, 1, 70), (0, 9, 48, 48)])
def test_torch_resizes_as_near_to_exact_arithmetic_as_pillow(box: tuple[int, int, int, int], side: int) -> None:
    """BEiT's `bicubic` is Pillow's; torch rounds its weights differently, but is no further from the real numbers."""
    image = noise(90, 70)
    view = make_view(**dict(zip(("left", "top", "w", "h"), box, strict=True)))
    crop = np.asarray(image)[box[1] : box[1] + box[3], box[0] : box[0] + box[2]].transpose(2, 0, 1)
    exact = torch.nn.functional.interpolate(
        torch.tensor(crop, dtype=torch.float64)[None], (side, side), mode="bicubic", antialias=True
    )
    exact = exact[0].clamp(0, 255).permute(1, 2, 0).numpy()
    pillow = render_view(image, view, img_size=side, resample="bicubic")
    ours = render_view(image, view, img_size=side, resample="bicubic-torch")
    assert ours.flags.writeable and ours.shape == (side, side, 3)
    assert np.abs(ours - exact).mean() <= np.abs(pillow - exact).mean() + 0.05
    assert np.abs(ours - exact).max() <= np.abs(pillow - exact).max() + 0.5


def test_torch_resizes_alike_with_any_number_of_threads() -> None:
    image, view, threads = noise(600, 500), make_view(w=600, h=500), torch.get_num_threads()
    rendered = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            rendered.append(render_view(image, view, resample="bicubic-torch"))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*rendered)


@pytest.mark.parametrize("size", [(4, 4), (112, 112), (10, 7)])
def test_mean_luma_is_the_rounded_mean_of_each_cell(size: tuple[int, int]) -> None:
    pixels = np.asarray(noise(*size))
    rows = [index * size[1] // 4 for index in range(5)]
    columns = [index * size[0] // 4 for index in range(5)]
    cells = [
        pixels[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].reshape(-1, 3).mean(0) @ [0.299, 0.587, 0.114]
        for i in range(4)
        for j in range(4)
    ]
    luma = mean_luma(pixels)
    assert luma.dtype == np.uint8 and luma.shape == (16,)
    assert np.abs(luma - np.array(cells)).max() <= 0.51


def test_canary_equals_the_golden_one_under_the_same_libraries() -> None:
    golden = json.loads(GOLDEN.read_text())
    versions = replay_versions()
    for library in ("pillow", "libjpeg_turbo"):
        if versions[library] != golden["versions"][library]:
            pytest.skip(f"the stored canary belongs to {golden['versions']}, this is {versions}")
    assert compute_canary() == golden["canary"]

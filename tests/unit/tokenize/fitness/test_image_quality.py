import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from beit.tokenize.fitness.image_quality import SSIM_WINDOW_PX, image_ssim


def noise(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def reference_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Equation 13 of Wang et al. written with scipy, for one picture (3, H, W)."""

    def blur(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma=1.5, radius=5)[5:-5, 5:-5]

    x, y = (np.tensordot([0.299, 0.587, 0.114], image.astype(np.float64), axes=1) for image in (first, second))
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return float((numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def test_ssim_equals_the_published_formula() -> None:
    first = noise(0, (3, 3, 37, 29))
    second = (first.float() * 0.7 + noise(1, first.shape).float() * 0.3).to(torch.uint8)
    expected = [reference_ssim(a.numpy(), b.numpy()) for a, b in zip(first, second, strict=True)]
    assert np.allclose(image_ssim(first, second).numpy(), expected, rtol=0, atol=1e-12)


def test_ssim_is_one_for_equal_pictures_and_symmetric() -> None:
    first, second = noise(0, (2, 3, 16, 16)), noise(1, (2, 3, 16, 16))
    assert torch.allclose(image_ssim(first, first), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(image_ssim(first, second), image_ssim(second, first), rtol=0, atol=1e-12)
    assert (image_ssim(first, second) < 0.5).all()


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    small = noise(0, (1, 3, SSIM_WINDOW_PX - 1, 20))
    with pytest.raises(ValueError, match="11"):
        image_ssim(small, small)

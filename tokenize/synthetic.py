"""Generated images with the statistics of photographs, so that nothing here depends on anyone's pictures.

`render_scene` paints one image: opaque leaves whose sizes follow a power law (the dead-leaves model of natural images),
filled with colours of a natural palette, gradients, stripes and 1/f noise, some of it out of focus. The demo's
images are others: `patterns.py`. Training a tokenizer on these images is `beit.tokenize.tokenizer_training.data`.

Source: A. B. Lee, D. Mumford, J. Huang, "Occlusion Models for Natural Images", IJCV 2001 (power-law leaves);
D. L. Ruderman, W. Bialek, "Statistics of Natural Images", PRL 1994 (1/f amplitude spectrum).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from beit.common.processes.cores import available_cores
from beit.common.processes.safe_path import safe_path
from beit.common.progress import Progress
from beit.common.rng import CounterRng

Result = TypeVar("Result")
FloatImage = NDArray[np.float32]

_OPPONENT_AXES = np.array([[0.577, 0.577, 0.577], [0.632, 0.12, -0.766], [0.45, -0.8, 0.4]], dtype=np.float32)
"""Rows: grey, yellow against blue, red against green: roughly the principal axes of colour in photographs."""
_OPPONENT_SPREAD = np.array([0.36, 0.12, 0.055], dtype=np.float32)
"""Standard deviation along each axis for colours in [0, 1]; light varies several times more than hue."""

SCENE_VERSION = 1
"""Raised with every change to the pictures `render_scene` paints; part of the names of cached ones."""

_WORTH_PROCESSES = 200
"""Pictures; fewer are painted before the processes have started."""


def generator_of(rng: CounterRng) -> np.random.Generator:
    """Return NumPy's generator in a state that `rng` decides."""
    return np.random.Generator(np.random.Philox(key=rng.raw(2)))


def noise_texture(generator: np.random.Generator, size: int, *, exponent: float, stretch: float = 1.0) -> FloatImage:
    """Draw periodic noise with amplitude spectrum 1/f**exponent, shape (size, size), zero mean, unit variance.

    Args:
        generator: Owns all randomness.
        size: Side in px.
        exponent: 0 is white noise, 1 resembles photographs, 2 and above is smooth.
        stretch: Frequencies along a random diagonal count this much more, which makes the noise streaky.
    """
    row_freq = np.fft.fftfreq(size)[:, None]
    column_freq = np.fft.rfftfreq(size)[None]
    angle = generator.uniform(0, math.pi)
    along = row_freq * math.cos(angle) + column_freq * math.sin(angle)
    across = column_freq * math.cos(angle) - row_freq * math.sin(angle)
    radius = np.sqrt((along * stretch) ** 2 + across**2)
    radius[0, 0] = 1.0
    amplitude = radius**-exponent
    amplitude[0, 0] = 0.0
    spectrum = amplitude * np.exp(2j * math.pi * generator.random(amplitude.shape))
    field = np.fft.irfft2(spectrum, s=(size, size))
    return np.asarray(field / (field.std() + 1e-12), dtype=np.float32)


def natural_palette(generator: np.random.Generator, num_colours: int) -> FloatImage:
    """Draw colours of one scene, shape (num_colours, 3), in [0, 1]: a common tint, much light, little hue.

    One scene in eight is grey and one colour in ten is vivid, because photographs have both.
    """
    vividness = 0.0 if generator.random() < 0.125 else float(generator.gamma(2.0, 0.42))
    spread = _OPPONENT_SPREAD * np.array([1.0, vividness, vividness], dtype=np.float32)
    tint = generator.standard_normal(3).astype(np.float32) * spread * 0.7
    tint[1] += 0.03  # photographs lean to the warm side
    scale = np.where(generator.random(num_colours) < 0.1, 3.0, 1.0)[:, None] * np.array([[0.0, 1.0, 1.0]])
    scale[:, 0] = 1.0
    offsets = generator.standard_normal((num_colours, 3)) * scale * spread
    light = generator.uniform(0.3, 0.6)
    colours = light + (tint + offsets).astype(np.float32) @ _OPPONENT_AXES
    return np.asarray(np.clip(colours, 0.0, 1.0), dtype=np.float32)


def _polygon(kind: int, generator: np.random.Generator, radius: float) -> NDArray[np.float64]:
    """Outline of one leaf around the origin, shape (corners, 2), px."""
    turn = generator.uniform(0, 2 * math.pi)
    if kind == 0:  # ellipse
        angles = np.linspace(0, 2 * math.pi, 20, endpoint=False)
        points = np.stack([np.cos(angles), np.sin(angles) * generator.uniform(0.35, 1.0)], axis=1)
    elif kind == 1:  # rectangle, sometimes a thin bar
        aspect = math.exp(generator.uniform(math.log(0.08), 0.0))
        points = np.array([[-1.2, -aspect], [1.2, -aspect], [1.2, aspect], [-1.2, aspect]])
    else:  # irregular, possibly concave
        corners = int(generator.integers(3, 9))
        angles = np.sort(generator.uniform(0, 2 * math.pi, corners))
        lengths = generator.uniform(0.4, 1.3, corners)
        points = np.stack([np.cos(angles) * lengths, np.sin(angles) * lengths], axis=1)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return np.asarray(points @ rotation * radius)


def _leaf_labels(generator: np.random.Generator, size: int, num_leaves: int) -> NDArray[np.int32]:
    """Paint leaves over each other and return which one is seen at each pixel, shape (size, size)."""
    smallest, largest = size * generator.uniform(0.01, 0.05), size * generator.uniform(0.25, 0.6)
    # Inverse of the distribution function of p(r) ~ r**-3, whose scenes look alike at every zoom.
    radii = (smallest**-2 - generator.random(num_leaves) * (smallest**-2 - largest**-2)) ** -0.5
    centres = generator.uniform(-0.1 * size, 1.1 * size, (num_leaves, 2))
    kinds = generator.choice(3, num_leaves, p=generator.dirichlet((1.5, 0.8, 1.5)))
    canvas = Image.new("I", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    for leaf in range(num_leaves):
        outline = _polygon(int(kinds[leaf]), generator, float(radii[leaf])) + centres[leaf]
        draw.polygon([(float(x), float(y)) for x, y in outline], fill=leaf + 1)
    return np.asarray(canvas, dtype=np.int32)


def _fill_leaves(generator: np.random.Generator, labels: NDArray[np.int32], num_labels: int) -> FloatImage:
    """Give every leaf a base colour, a gradient, and one of four shared patterns; shape (size, size, 3)."""
    size = labels.shape[0]
    palette = natural_palette(generator, int(generator.integers(3, 9)))
    base = palette[generator.integers(0, len(palette), num_labels)]
    base = base + generator.standard_normal((num_labels, 3)).astype(np.float32) * 0.03
    base = base + generator.standard_normal((num_labels, 1)).astype(np.float32) * 0.07

    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    # Patterns have half the side: after the averaging down they still hold detail at single pixels, and cost a quarter.
    half = size // 2
    patterns = [
        noise_texture(generator, half, exponent=generator.uniform(0.3, 1.0)),
        noise_texture(generator, half, exponent=generator.uniform(0.8, 1.5), stretch=generator.uniform(1, 8)),
        noise_texture(generator, half, exponent=generator.uniform(1.0, 1.6)),
        stripes(generator, half),
    ]
    strength = generator.gamma(1.2, 0.085, (num_labels, 1)) * (generator.random((num_labels, 1)) < 0.9)
    chroma = 1.0 + 0.25 * generator.standard_normal((num_labels, 3))
    amplitude = (strength * chroma).astype(np.float32)
    slopes = (generator.standard_normal((num_labels, 2)) * 0.25).astype(np.float32)

    pattern_of_leaf = generator.choice(4, num_labels, p=(0.3, 0.35, 0.25, 0.1))[labels]
    pattern = np.choose(pattern_of_leaf, [texture.repeat(2, axis=0).repeat(2, axis=1) for texture in patterns])
    shading = slopes[labels, 0] * rows + slopes[labels, 1] * columns
    return np.asarray(base[labels] + amplitude[labels] * pattern[..., None] + shading[..., None], dtype=np.float32)


def stripes(generator: np.random.Generator, size: int) -> FloatImage:
    """Draw parallel bands with soft or hard edges, or a checkerboard, shape (size, size), about unit variance."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    angle, period = generator.uniform(0, math.pi), math.exp(generator.uniform(math.log(3), math.log(size / 3)))
    hardness = math.exp(generator.uniform(0.0, 2.5))
    wave = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * (2 * math.pi / period))
    if generator.random() < 0.25:
        wave = wave * np.sin((columns * math.sin(angle) - rows * math.cos(angle)) * (2 * math.pi / period))
    return np.asarray(np.tanh(hardness * wave) * 1.2, dtype=np.float32)


def _blur(image: FloatImage, sigma: float) -> FloatImage:
    if sigma < 0.2:
        return image
    pixels = Image.fromarray(_to_bytes(image)).filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(pixels, dtype=np.float32) / 255.0


def _to_bytes(image: FloatImage) -> NDArray[np.uint8]:
    return np.asarray(np.clip(image, 0.0, 1.0) * 255.0 + 0.5, dtype=np.uint8)


def render_scene(rng: CounterRng, img_size: int) -> NDArray[np.uint8]:
    """Paint one photograph-like image, shape (img_size, img_size, 3), uint8 RGB.

    Drawn at twice the size and averaged down, so that edges are smooth; never JPEG-compressed.

    Args:
        rng: Owns all randomness; same state, same picture under the same NumPy and Pillow.
        img_size: Side in px.
    """
    generator = generator_of(rng)
    size = 2 * img_size
    num_leaves = int(math.exp(generator.uniform(math.log(8), math.log(500))))
    image = _fill_leaves(generator, _leaf_labels(generator, size, num_leaves), num_leaves + 1)
    image = _blur(image, 2.0 * float(generator.gamma(0.5, 1.0)))
    if generator.random() < 0.6:  # sharper things in front of it, as in photographs with a blurred background
        num_front = int(math.exp(generator.uniform(0.0, math.log(150))))
        labels = _leaf_labels(generator, size, num_front)
        front = _fill_leaves(generator, labels, num_front + 1)
        image = np.where((labels > 0)[..., None], front, image)
        image = _blur(image, 2.0 * float(generator.gamma(0.4, 0.4)))
    image = image.reshape(img_size, 2, img_size, 2, 3).mean(axis=(1, 3))
    image = image * (1.0 + 0.1 * noise_texture(generator, img_size, exponent=2.4)[..., None])
    contrast, brightness = generator.uniform(0.7, 1.15), generator.normal(0.0, 0.04)
    image = (image - 0.5) * contrast + 0.5 + brightness
    image = image + generator.standard_normal(image.shape) * generator.gamma(1.0, 0.008)
    return _to_bytes(image.astype(np.float32))


def paint_all(paint: Callable[[int], Result], count: int, *, unit: str = "images") -> list[Result]:
    """Call `paint(number)` for 0 to count - 1 on all cores, with a progress bar, and return the results in order.

    `paint` is picklable, and what it does depends on the number only; `unit` is what a call paints, in the plural.
    """
    with Progress(count, unit=unit, description="generating") as progress, ExitStack() as stack:
        if count < _WORTH_PROCESSES:
            results: Iterable[Result] = map(paint, range(count))
        else:
            stack.enter_context(safe_path())
            pool = stack.enter_context(ProcessPoolExecutor(available_cores(), mp_context=get_context("spawn")))
            results = pool.map(paint, range(count), chunksize=16)
        painted = []
        for result in results:
            painted.append(result)
            progress.update(1)
    return painted

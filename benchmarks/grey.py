"""What one channel saves against three: views read from JPEGs, training steps, input on the device; paired, in turns.

    python benchmarks/grey.py --size tiny --img-size 64 --patch-size 8

Both sides take turns in one process, so that whatever else the machine does slows both; printed is the median of the
ratios of neighbouring turns with its quartiles. Images are painted, and saved once in colour and once in grey.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from beit.common.images.decode import decode_image
from beit.common.images.decoding import Decoding
from beit.common.rng import CounterRng
from beit.common.views import AugmentConfig, crop_crc, draw_view, replay_view
from beit.common.vit.config import ModelConfig, build_vit_config
from beit.common.vit.transform import normalize_images
from beit.pretrain.model import MaskedImageModel, mim_loss
from beit.tokenize.synthetic import render_scene

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTO_PX = 400


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, pair in (("views of a JPEG in colour", readers(options, "RGB")),
                       ("views of a grey JPEG", readers(options, "L")),
                       ("training steps", steps(options))):  # fmt: skip
        report(name, pair, options.turns)
    values = options.batch * options.img_size**2
    sizes = f"{values / 1e6:.2f} MB grey, {3 * values / 1e6:.2f} MB RGB"
    print(f"a batch of {options.batch} on its way to the device: {sizes}")


def readers(options: argparse.Namespace, mode: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return what replays stored views of the same photographs in grey, and in RGB."""
    files = []
    for number in range(8):
        buffer = io.BytesIO()
        Image.fromarray(render_scene(CounterRng(number), PHOTO_PX)).convert(mode).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    made = []
    for channels in ("grey", "rgb"):
        decoding, jobs = Decoding(channels=channels), []
        for number, data in enumerate(files):
            image = decode_image(data, decoding)
            view = draw_view(CounterRng(number, "view"), image.width, image.height, AugmentConfig())
            view["crc_crop"] = crop_crc(image, view)
            jobs.append((data, view))
        made.append(
            lambda jobs=jobs, decoding=decoding: [
                replay_view(data, view, img_size=options.img_size, decoding=decoding) for data, view in jobs
            ]
        )
    return made[0], made[1]


def steps(options: argparse.Namespace) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return one step, forward and backward, of a grey model and of one for RGB."""
    made = []
    for channels in (1, 3):
        torch.manual_seed(0)
        shape = build_vit_config(
            ModelConfig(size=options.size, drop_path=0.0),
            img_size=options.img_size,
            patch_size=options.patch_size,
            in_chans=channels,
        )
        model = MaskedImageModel(shape, vocab_size=1024, num_masked=shape.num_patches)
        images = torch.randint(0, 256, (options.batch, channels, *(options.img_size,) * 2), dtype=torch.uint8)
        masks = torch.rand(options.batch, shape.num_patches) < 0.4
        words = torch.randint(0, 1024, (options.batch, shape.num_patches))

        def step(model=model, images=images, masks=masks, words=words, channels=channels) -> None:
            pixels = normalize_images(images, MEAN[:channels], STD[:channels])
            mim_loss(model(pixels, masks, masks), words).loss.backward()
            model.zero_grad(set_to_none=True)

        made.append(step)
    return made[0], made[1]


def report(name: str, pair: tuple[Callable[[], object], Callable[[], object]], turns: int) -> None:
    """Let both take turns, and print how much sooner grey is done."""
    ratios = []
    for turn in range(turns + 1):
        seconds = [0.0, 0.0]
        for side in (0, 1) if turn % 2 else (1, 0):
            start = time.process_time()
            pair[side]()
            seconds[side] = time.process_time() - start
        if turn:  # the first warms up
            ratios.append(seconds[1] / seconds[0])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    print(f"{name}: grey {middle:.2f} times as fast as RGB (quartiles {low:.2f} to {high:.2f}, {turns} pairs of turns)")


if __name__ == "__main__":
    main()

"""What does it change that colours are jittered after the crop and the resize, and not before them as in the paper?

    python benchmarks/jitter_order.py --source photos/ --images 120

Every image gets one view, drawn as for a store, and the view is rendered in both orders: for the model, where pixels
are compared in grey levels of 255, and for the tokenizer, where words are. The paper's order is
`augment.jitter_scope=image`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import numpy as np

from beit.benchmarks.stores import make_store, write_scenes
from beit.common.tokenizer import load_tokenizer
from beit.common.views import TOKEN_RESAMPLE, JitterScope, render_view

ORDERS: tuple[JitterScope, JitterScope] = ("crop", "image")


@click.command()
@click.option("--source", help="Images, in any form that beit tokenize takes; generated ones if left out.")
@click.option("--images", "num_images", default=120, show_default=True, help="How many to look at, or to generate.")
@click.option("--tokenizer", default="mini", show_default=True, help="Whose words are compared.")
@click.option("--img-size", default=224, show_default=True, metavar="PX", help="Side of a view.")
@click.option("--patch-size", default=16, show_default=True, metavar="PX", help="Side of a patch.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def main(source: str | None, num_images: int, tokenizer: str, img_size: int, patch_size: int, as_json: bool) -> None:
    """Render and tokenise one view of every image in both orders and print how far they lie apart."""
    loaded = load_tokenizer(tokenizer, need_decoder=False)
    token_px = img_size // patch_size * loaded.downsampling
    differences, kept = [], []
    with tempfile.TemporaryDirectory() as folder:
        images = source or write_scenes(Path(folder) / "scenes", num_images)
        store = make_store(images, Path(folder) / "store", views=1, img_size=img_size, patch_size=patch_size)
        for index in range(min(num_images, len(store))):
            sample = store[index]
            image, view = sample["image"], sample["views"][0]
            seen = [render_view(image, view, img_size=img_size, jitter_scope=order).astype(int) for order in ORDERS]
            differences.append(np.abs(seen[0] - seen[1]))
            small = [
                render_view(image, view, img_size=token_px, resample=TOKEN_RESAMPLE, jitter_scope=order)
                for order in ORDERS
            ]
            words = loaded.encode(np.stack(small))
            kept.append((words[0] == words[1]).float().mean().item())
    means = [float(difference.mean()) for difference in differences]
    result = {
        "images": len(means),
        "mean_grey_levels": round(float(np.mean(means)), 2),
        "mean_of_worst_image": round(max(means), 1),
        "largest_of_a_pixel": int(max(difference.max() for difference in differences)),
        "words_kept": round(float(np.mean(kept)), 3),
        "words_kept_of_worst_image": round(min(kept), 3),
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name.replace('_', ' '):<28}{value:>8}")


if __name__ == "__main__":
    main()

from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from beit.common.errors import InputError
from beit.common.store import open_store
from beit.common.views import render_view
from beit.tests.tiny_store import tokenize, write_folder
from beit.tokenize.commands import show_tokens_command
from beit.tokenize.pictures.words import words_sheet


def test_the_commonest_words_come_first_one_row_each(tmp_path):
    tokenize(write_folder(tmp_path / "images", 8), tmp_path / "store", views=1)
    store = open_store(tmp_path / "store")
    words, counts = np.unique([sample["token_ids"] for sample in store], return_counts=True)
    commonest = words[np.argsort(-counts, kind="stable")]
    sheet = np.asarray(words_sheet(store, num_words=5, num_examples=4, num_samples=8))
    more = words_sheet(store, num_words=6, num_examples=4, num_samples=8)
    places = [np.argwhere((sheet == colour).all(-1)).mean(0).tolist() for colour in mean_colours(store, commonest[:5])]
    step = more.height - len(sheet)
    assert 70 < step < 100
    assert all(below[0] - above[0] == step and below[1] == above[1] for above, below in pairwise(places))


def mean_colours(store, words):
    """Of all patches that carry each word in the only view of every sample."""
    info = store.info
    patches, carried = [], []
    for sample in store:
        view = render_view(
            sample["image"], sample["views"][0], img_size=info.img_size, jitter_scope=info.augment.jitter_scope
        )
        grid = view.reshape(info.grid_size, info.patch_size, info.grid_size, info.patch_size, 3)
        patches.append(grid.mean((1, 3)).reshape(-1, 3))
        carried.append(sample["token_ids"][0].reshape(-1))
    patches, carried = np.concatenate(patches), np.concatenate(carried)
    return [patches[carried == word].mean(0).round().astype(np.uint8) for word in words]


def test_the_command_writes_a_picture_and_refuses_a_store_without_tokens(tmp_path):
    source = write_folder(tmp_path / "images", 3)
    tokenize(source, tmp_path / "store", materialize=True)
    tokenize(source, tmp_path / "plain", views=0)
    result = CliRunner().invoke(show_tokens_command, [str(tmp_path / "store"), "--out", str(tmp_path / "x.png")])
    assert result.exit_code == 0 and Image.open(tmp_path / "x.png").format == "PNG"
    with pytest.raises(InputError, match="holds no tokens"):
        words_sheet(open_store(tmp_path / "plain"), num_words=1, num_examples=1, num_samples=1)

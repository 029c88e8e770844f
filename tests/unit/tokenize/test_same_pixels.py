"""Settings of decoding in combination: tokens, training and predictions are of the same pixels, value for value."""

import io
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from beit.common.images.decode import decode_image
from beit.common.images.large.tiles import Tiling
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.sources.config import SourceConfig
from beit.common.sources.index_build import build_index
from beit.common.store import open_store
from beit.common.views import replay_view
from beit.tests.science_files import noise
from beit.tests.tiny_store import tokenize


def scan(seed):
    """Two pages of 12-bit colours, of which a corner is transparent, in tiles."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in noise((2, 96, 130, 4), seed=seed) // 16:
            page[:30, :30, 3] = 0
            writer.write(page, photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32), metadata=None)
    return buffer.getvalue()


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed in range(2):
        (folder / f"{seed}.tif").write_bytes(scan(seed))
    return folder


@pytest.mark.parametrize(
    ("settings", "tile"),
    [
        ({"channels": "grey", "range": (0.0, 4095.0), "alpha": "white", "frame": "each"}, 64),
        ({"channels": (2,), "range": "percentile:1,99", "frame": "each"}, 0),
        ({"channels": (3, 2, 1), "range": "percentile:1,99", "alpha": "checker", "frame": 1}, 0),
    ],
)
def test_stores_hold_what_the_settings_make_of_the_files(tmp_path, scans, settings, tile):
    tokenize(scans, tmp_path / "store", source=SourceConfig(**settings), tile=tile)
    store = open_store(str(tmp_path / "store"))
    decoding = store.info.source.decoding
    frames = (0, 1) if settings["frame"] == "each" else (settings["frame"],)
    images = [
        decode_image(path.read_bytes(), replace(decoding, frame=frame)) for path in scans.iterdir() for frame in frames
    ]
    parts = [image.crop(part.box) for image in images for part in Tiling(tile, 0).tiles(image.size)] if tile else images
    expected = sorted(part.tobytes() for part in parts)
    records = [
        store.read_record(shard, row, 0)
        for shard in range(len(store.shard_sizes(held_out=False)))
        for row in range(len(store.samples(shard)))
    ]
    assert sorted(record.decode_image().tobytes() for record in records) == expected
    for record in records:  # by the checksum of what was tokenised
        view = replay_view(record.image_bytes, record.view, img_size=16, decoding=record.decoding)
        assert np.asarray(view).shape == (16, 16, decoding.num_channels)
    if settings["frame"] != "each":
        index = build_index(str(scans), tmp_path / "cache", settings=SourceConfig().after(decoding, "m", is_final=True))
        dataset = LabelledDataset(index)
        shown = [dataset.fetch(*index.locate(position), 0).decode_image().tobytes() for position in range(len(index))]
        assert sorted(shown) == expected

"""Which images an encoder finds alike, and the picture of it."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from beit.cli import beit
from beit.common.errors import InputError
from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer
from beit.finetune.neighbours import nearest
from beit.tests.encoders import save_encoder
from beit.tests.support import write_images

CONFIG = ViTConfig(img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=2)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    state = VisionTransformer(CONFIG).state_dict()
    norm = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    save_encoder(tmp_path / "encoder", state, architecture=CONFIG, **norm, provenance={})
    write_images(tmp_path / "images", 6, size=20)
    return tmp_path


def show(folder, *words):
    out = ["--out", str(folder / "n.png"), "--json", str(folder / "n.json")]
    images = [str(folder / "encoder"), str(folder / "images")]
    return CliRunner().invoke(beit, ["show", "neighbours", *images, *words, *out], catch_exceptions=False)


def test_the_nearest_are_those_of_the_same_direction_and_never_the_image_itself():
    angles = torch.tensor([0.0, 0.1, 1.5, 1.7, 3.2, 3.3, 4.7, 4.8])
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.arange(1, 9)[:, None] ** 0
    found = nearest(features, [0, 3, 6], 2)
    assert found[:, 0].tolist() == [1, 2, 7]
    assert all(query not in row for query, row in zip([0, 3, 6], found.tolist(), strict=True))


def test_what_all_images_have_in_common_counts_for_nothing():
    angles = torch.arange(8) * 0.8
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    shifted = features + torch.tensor([100.0, -50.0])
    assert torch.equal(nearest(features, range(8), 2).sort().values, nearest(shifted, range(8), 2).sort().values)


def test_an_image_and_its_copy_are_neighbours(folder):
    (folder / "images/copy.png").write_bytes(sorted((folder / "images").iterdir())[0].read_bytes())
    assert show(folder, "--rows", "7").output == f"wrote {folder / 'n.png'} and {folder / 'n.json'}\n"
    found = json.loads((folder / "n.json").read_text())
    name = next(name for name in found if name.endswith("copy.png"))
    assert len(found) == 7 and all(len(others) == 6 for others in found.values())
    assert found[found[name][0]][0] == name
    with Image.open(folder / "n.png") as drawn:
        assert drawn.width > 7 * 112


def test_one_image_has_no_neighbours(folder):
    for path in sorted((folder / "images").iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match="neighbours need more"):
        show(folder)

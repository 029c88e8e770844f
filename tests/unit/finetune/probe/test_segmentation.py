"""A linear probe on patches finds what is in them, counts every pixel once, and names the block to use."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from beit.common.config import config_to_toml, load_config
from beit.common.errors import InputError, ResumableStop
from beit.finetune.probe.segmentation import class_shares, enlarged_ids, grid_of, run_segmentation_probe
from beit.finetune.segmentation.config import SegmentationConfig

SETTINGS = (
    "encoder=random", "model.embed_dim=16", "model.depth=2", "model.num_heads=2", "image.img_size=16",
    "image.patch_size=4", "reader.num_workers=0",
)  # fmt: skip


def config(*changes):
    return load_config(SegmentationConfig, recipe=None, overrides=[*SETTINGS, *changes], recipe_dir=None)


def write_scenes(folder, count, *, start=0, size=(40, 32), ignored=0):
    """Write images of which one half is red and the other blue, along a line that moves, with masks 0 and 1."""
    for kind in ("images", "annotations"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        rng = np.random.default_rng(number)
        mask = np.zeros(size[::-1], np.uint8)
        mask[:, rng.integers(8, size[0] - 8) :] = 1
        pixels = np.where(mask[..., None] == 1, (220, 30, 30), (30, 30, 220)) + rng.integers(-20, 20, (*mask.shape, 3))
        mask[:ignored] = 255
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "annotations" / f"{number}.png")
    return folder


@pytest.fixture
def scenes(tmp_path):
    write_scenes(tmp_path / "data/train", 8)
    write_scenes(tmp_path / "data/val", 4, start=100, size=(50, 17), ignored=3)
    return tmp_path / "data"


def test_colours_are_told_apart_and_the_result_says_how(scenes, tmp_path):
    table = run_segmentation_probe(config(), data=str(scenes), run_dir=tmp_path / "run")
    result = json.loads((tmp_path / "run/segmentation-probe.json").read_text())
    assert result["task"] == "segmentation-probe" and result["encoder"] == "random"
    assert [row["block"] for row in result["blocks"]] == [0, 1]
    best = max(result["blocks"], key=lambda row: (row["miou"], row["block"]))
    assert result["best_block"] == best["block"] and result["miou"] == best["miou"] > 0.8
    assert (result["num_train_images"], result["num_images"], result["num_classes"]) == (8, 4, 2)
    assert f"head.blocks=[{best['block']}]" in table.splitlines()[-1]
    assert config(f"head.blocks=[{best['block']}]").head.blocks == (best["block"],)
    again = run_segmentation_probe(config(), data=str(scenes), run_dir=tmp_path / "again")
    assert again == table  # nothing is random
    assert json.loads((tmp_path / "again/segmentation-probe.json").read_text()) == result


def test_fewer_patches_are_spread_over_all_images(scenes, tmp_path):
    run_segmentation_probe(config("probe.max_patches=20"), data=str(scenes), run_dir=tmp_path / "run")
    result = json.loads((tmp_path / "run/segmentation-probe.json").read_text())
    assert result["num_patches"] == 24  # 3 of each of 8 images


def test_memory_is_refused_before_the_work(scenes, tmp_path):
    with pytest.raises(InputError, match=r"probe.max_patches \(30000\) patches of 2 blocks take .* use fewer patches"):
        run_segmentation_probe(config("probe.max_feature_gib=0.001"), data=str(scenes), run_dir=tmp_path / "run")


def test_images_to_measure_on_are_needed(tmp_path):
    train = write_scenes(tmp_path / "train", 2)
    with pytest.raises(InputError, match="--val is missing"):
        run_segmentation_probe(config(), data=str(train), run_dir=tmp_path / "run")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.toml").write_text(config_to_toml(config()))
    with pytest.raises(InputError, match="holds a run of beit finetune segmentation, not"):
        run_segmentation_probe(config(), data=str(train), run_dir=tmp_path / "run")


@pytest.mark.parametrize("size", [(40, 32), (16, 16), (3, 3), (1, 900), (900, 1), (479, 361)])
def test_windows_cover_the_grid_and_stay_inside(size):
    grid = grid_of(size, img_size=16, patch_size=4, short_side=None)
    seen = np.zeros((grid.rows, grid.columns), np.int64)
    for row, column in grid.origins:
        assert row + grid.side <= grid.rows and column + grid.side <= grid.columns
        seen[row : row + grid.side, column : column + grid.side] += 1
    assert seen.min() == 1 and max(seen.shape) <= 8 * max(4, min(size) // 4 + 1)


def test_shares_count_every_pixel_in_one_patch():
    rng = np.random.default_rng(0)
    mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), (37, 53))
    grid = grid_of((53, 37), img_size=16, patch_size=4, short_side=24)
    shares = class_shares(mask, grid, 3).reshape(grid.rows, grid.columns, 3)
    rows, columns = (np.arange(length) * parts // length for length, parts in ((37, grid.rows), (53, grid.columns)))
    for row, column in [(0, 0), (grid.rows - 1, grid.columns - 1), (2, 3)]:
        pixels = mask[np.ix_(rows == row, columns == column)]
        assert shares[row, column].tolist() == pytest.approx([np.mean(pixels == number) for number in range(3)])
    tiny = class_shares(np.array([[1]], np.uint8), grid, 3)  # fewer pixels than patches: some have none
    assert tiny.sum() == 1


def test_logits_are_enlarged_bilinearly(monkeypatch):
    logits = torch.randn(3, 5, 7)
    wanted = torch.nn.functional.interpolate(logits[None], size=(37, 53), mode="bilinear")[0].argmax(0)
    for pixels in (2**20, 200):  # at once, and in strips
        monkeypatch.setattr("beit.finetune.probe.segmentation._STRIP_PIXELS", pixels)
        assert np.mean(enlarged_ids(logits, (37, 53)) == wanted.numpy()) > 0.999


def test_ctrl_c_does_not_promise_to_go_on(scenes, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("beit.finetune.probe.segmentation._probe", interrupt)
    with pytest.raises(ResumableStop, match="interrupted; the same command begins again"):
        run_segmentation_probe(config(), data=str(scenes), run_dir=tmp_path / "run")

"""What a user gets wrong about images and encoders: one clear line each, before anything is written."""

import pytest

from beit.common.errors import InputError
from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer
from beit.finetune.train import run
from beit.tests.encoders import save_encoder
from beit.tests.image_files import write_parquet
from beit.tests.unit.finetune.colours import finetune_config, write_images


def flat(root):
    return write_images(root / "flat", ("red",), 3) / "red"


def one_class(root):
    return write_images(root / "one", ("red",), 3)


def two_classes(root):
    return write_images(root / "two", ("red", "blue"), 3)


def other_names(root):
    return write_images(root / "other", ("red", "green"), 3)


def more_numbers(root):
    return write_parquet(root / "numbers.parquet", [0, 1, 7], 3)


def other_encoder(root):
    shape = ViTConfig(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    state = VisionTransformer(shape).state_dict()
    save_encoder(root / "encoder", state, architecture=shape, mean=[0.5] * 3, std=[0.5] * 3, provenance={})
    return root / "encoder"


def deeper_encoder(root):
    shape = ViTConfig(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2)
    state = VisionTransformer(shape).state_dict()
    save_encoder(root / "encoder", state, architecture=shape, mean=[0.5] * 3, std=[0.5] * 3, provenance={})
    return root / "encoder"


def no_encoder(root):
    return two_classes(root / "images")


CASES = {
    "labels missing": ({"data": flat}, [], "no labels found in .*; sort the images into one sub-folder per class"),
    "one class": ({"data": one_class}, [], r"holds one class only \(red\)"),
    "no labels to validate": ({"data": two_classes, "val": flat}, [], "no labels found"),
    "other class names": ({"data": two_classes, "val": other_names}, [], r"the model does not know \(green\)"),
    "more classes": ({"data": two_classes, "val": more_numbers}, [], r"are numbers \(0, 1, 7\), the model.s are names"),
    "size off the patches": ({"data": two_classes}, ["image.img_size=18"], r"img_size \(18\) must be a multiple of"),
    "other patches": (
        {"data": two_classes, "encoder": other_encoder},
        [],
        r"patch_size \(4\) must be 8, the patch size",
    ),
    "other depth": (
        {"data": two_classes, "encoder": deeper_encoder},
        [],
        "settings are for a model of 24 wide, 2 blocks, 2 heads .* has 24 wide, 3 blocks, 2 heads",
    ),
    "no encoder": ({"data": two_classes, "encoder": no_encoder}, [], "is not an encoder: it has no config.json"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_is_one_clear_line_and_leaves_nothing(tmp_path, name):
    makers, overrides, message = CASES[name]
    places = {key: make(tmp_path) for key, make in makers.items()}
    settings = [*overrides, *(f"encoder={places[key]}" for key in ("encoder",) if key in places)]
    settings += [f"data.val={places['val']}"] if "val" in places else []
    with pytest.raises(InputError, match=message) as caught:
        run(finetune_config(*settings), data=str(places["data"]), run_dir=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_settings_that_name_no_shape_fit_every_encoder(tmp_path):
    from beit.common.config import load_config
    from beit.finetune.artifact import starting_point
    from beit.finetune.commands import RECIPES
    from beit.finetune.config import FinetuneConfig

    encoder = deeper_encoder(tmp_path)
    for recipe in (None, "small_500", "small_50k"):
        config = load_config(FinetuneConfig, recipe=recipe, overrides=[f"encoder={encoder}"], recipe_dir=RECIPES)
        assert starting_point(config).architecture.depth == 3

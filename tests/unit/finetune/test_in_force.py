"""What an encoder brings is what is recorded, and a setting that says otherwise is refused."""

import tomllib
from dataclasses import replace

import pytest

from beit.common.config import flatten
from beit.common.errors import InputError
from beit.common.runs.changes import find_changes
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.finetune.config import FinetuneConfig, ShapeConfig
from beit.finetune.in_force import in_force, require_agreement, unnamed_shape
from beit.finetune.probe.run import run_probe
from beit.finetune.train import run
from beit.tests.unit.finetune.colours import finetune_config

PIXELS = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
TINY = ViTConfig(img_size=64, patch_size=8, embed_dim=192, depth=6, num_heads=3)
OF_ENCODER = [f"image.{name}=none" for name in ("img_size", "patch_size")]
OF_ENCODER += [f"model.{name}=none" for name in ("embed_dim", "depth", "num_heads")]


def stored(architecture=TINY):
    return EncoderConfig(architecture=architecture, normalization=PIXELS, task="pretrain")


def plain(**changes):
    return FinetuneConfig(encoder="e", model=ShapeConfig(**changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.size=base",), "for a model of 768 wide, 12 blocks, 12 heads .* has 192 wide, 6 blocks, 3 heads"),
        (("model.size=small",), "for a model of 384 wide"),
        (("model.depth=12",), "192 wide, 12 blocks, 3 heads"),
        (("model.size=base", "model.embed_dim=192", "model.depth=6"), "192 wide, 6 blocks, 12 heads"),
        (("model.mlp_ratio=2",), r"model.mlp_ratio \(2.0\) must be 4.0"),
        (("model.use_abs_pos_emb=true",), r"model.use_abs_pos_emb \(True\) must be False"),
        (("model.init_values=0",), r"model.init_values \(0.0\) must be above 0"),
        (("image.patch_size=16",), r"image.patch_size \(16\) must be 8, the patch size"),
        (("image.mean=[0.5, 0.5, 0.5]",), r"image.mean \(\[0.5, 0.5, 0.5\]\) must be \[0.1, 0.2, 0.3\]"),
        (("image.std=[0.5, 0.5, 0.5]",), "image.std"),
    ],
)
def test_a_setting_that_contradicts_the_encoder_is_refused(settings, message):
    with pytest.raises(InputError, match=message) as error:
        require_agreement(stored(), finetune_config("encoder=e", *OF_ENCODER, *settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.size=tiny",),
        ("model.size=base", "model.embed_dim=192", "model.depth=6", "model.num_heads=3"),
        ("model.drop_path=0.3", "model.init_values=1e-5", "image.img_size=128", "model.mlp_ratio=4"),
        ("image.mean=[0.1, 0.2, 0.3]", "image.std=[0.4, 0.5, 0.6]", "image.patch_size=8"),
    ],
)
def test_a_setting_that_says_the_same_or_that_may_be_another_is_not(settings):
    require_agreement(stored(), finetune_config("encoder=e", *OF_ENCODER, *settings))


def test_what_was_left_out_is_filled_in_and_fits_the_encoder_again():
    config = in_force(plain(), replace(TINY, pos_bias="per_block"), PIXELS)
    model, image = config.model, config.image
    assert (model.size, model.embed_dim, model.depth, model.num_heads) == ("tiny", 192, 6, 3)
    assert (image.img_size, image.patch_size, image.mean, image.std) == (64, 8, *PIXELS)
    require_agreement(stored(), config)
    assert in_force(config, replace(TINY, pos_bias="per_block"), PIXELS) == config


def test_runs_and_probes_record_what_was_in_force(finished, tmp_path):
    data = f"data.val={finished.val}"
    config = finetune_config(f"encoder={finished.run}", data, *OF_ENCODER, "train.steps=2")
    run(config, data=str(finished.train), run_dir=tmp_path / "run")
    run_probe("knn", config, data=str(finished.train), run_dir=tmp_path / "probe")
    for name in ("run", "probe"):
        recorded = flatten(tomllib.loads((tmp_path / name / "config.toml").read_text()))
        assert (recorded["image.img_size"], recorded["image.patch_size"], recorded["model.embed_dim"]) == (16, 4, 24)
        assert "model.size" not in recorded, "it has none of the names"
        assert find_changes(tmp_path / name / "config.toml", in_force(config, *start(finished.run))) == []
    run(config, data=str(finished.train), run_dir=tmp_path / "run")  # the same command again


def start(run_dir):
    from beit.finetune.artifact import starting_point

    point = starting_point(finetune_config(f"encoder={run_dir}", *OF_ENCODER))
    return point.architecture, point.normalization


OLD = """
encoder = "{encoder}"
[model]
{model}
mlp_ratio = 4.0
drop_path = 0.1
use_abs_pos_emb = false
pos_bias = "shared"
[image]
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


@pytest.mark.parametrize(
    ("encoder", "model", "changed"),
    [
        ("e", 'size = "base"', []),
        ("e", 'size = "base"\nembed_dim = 192', []),
        ("e", 'size = "tiny"\nembed_dim = 96', ["model.embed_dim"]),
        ("random", 'size = "base"', ["model.size"]),
        ("random", 'size = "tiny"', []),
    ],
)
def test_a_run_that_recorded_less_goes_on_unless_it_was_another(tmp_path, encoder, model, changed):
    (tmp_path / "config.toml").write_text(OLD.format(encoder=encoder, model=model))
    config = in_force(replace(plain(), encoder=encoder), replace(TINY, pos_bias="per_block"), PIXELS)
    assert [change.name for change in find_changes(tmp_path / "config.toml", config)] == changed


def test_random_weights_of_a_size_that_nobody_named_are_warned_about():
    base = ViTConfig()
    assert "beit_base_patch16_224" in unnamed_shape(FinetuneConfig(encoder="random"), base)
    assert unnamed_shape(FinetuneConfig(encoder="random", model=ShapeConfig(size="base")), base) is None
    assert unnamed_shape(FinetuneConfig(encoder="random", model=ShapeConfig(depth=2)), base) is None
    assert unnamed_shape(plain(), base) is None

"""Named sizes, explicit shapes, and the errors a wrong shape gives."""

import subprocess
import sys

import pytest

from beit.common.config import config_from_dict, config_to_dict
from beit.common.errors import InputError
from beit.common.vit.config import VIT_SIZES, ModelConfig, ViTConfig, build_vit_config


@pytest.mark.parametrize("size", VIT_SIZES)
def test_size_presets_resolve(size):
    config = build_vit_config(ModelConfig(size=size), img_size=224, patch_size=16)
    assert (config.embed_dim, config.depth, config.num_heads) == (
        VIT_SIZES[size].embed_dim,
        VIT_SIZES[size].depth,
        VIT_SIZES[size].num_heads,
    )
    assert config.name == f"beit_{size}_patch16_224"


def test_published_sizes_have_the_papers_shape():
    assert (VIT_SIZES["base"].embed_dim, VIT_SIZES["base"].depth, VIT_SIZES["base"].num_heads) == (768, 12, 12)
    assert (VIT_SIZES["large"].embed_dim, VIT_SIZES["large"].depth, VIT_SIZES["large"].num_heads) == (1024, 24, 16)
    assert (VIT_SIZES["base"].init_values, VIT_SIZES["large"].init_values) == (0.1, 1e-5)


def test_explicit_shape_overrides_the_size():
    model = ModelConfig(size="tiny", embed_dim=96, depth=2, num_heads=4, init_values=0.0)
    config = build_vit_config(model, img_size=40, patch_size=8)
    assert (config.embed_dim, config.depth, config.num_heads, config.init_values) == (96, 2, 4, 0.0)
    assert config.grid_size == (5, 5)
    assert config.num_patches == 25
    assert config.name == "beit_96x2x4_patch8_40"


def test_config_round_trips_through_plain_values():
    config = build_vit_config(ModelConfig(size="small", pos_bias="none"), img_size=64, patch_size=8)
    assert config_from_dict(ViTConfig, config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"img_size": 225}, ("225", "16")),
        ({"num_heads": 7}, ("768", "7")),
        ({"depth": 0}, ("depth", "0")),
        ({"drop_path": 1.0}, ("drop_path", "1.0")),
        ({"init_values": -0.1}, ("init_values", "-0.1")),
        ({"pos_bias": "both"}, ("pos_bias", "both")),
        ({"init": "zero"}, ("init", "zero")),
        ({"mlp_ratio": 0.0}, ("mlp_ratio", "0.0")),
        ({"mlp_ratio": 1e300}, ("mlp_ratio", "1e+300")),
        ({"mlp_ratio": float("inf")}, ("mlp_ratio", "inf")),
    ],
)
def test_wrong_shape_names_the_value(settings, values):
    with pytest.raises(InputError) as error:
        ViTConfig(**settings)
    assert all(value in str(error.value) for value in values)


def test_module_needs_no_torch():
    code = "import sys, beit.common.vit.config, beit.common.vit.description; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

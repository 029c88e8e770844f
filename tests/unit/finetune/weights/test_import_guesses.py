"""What weights do not tell: taken from what came with them, else a guess that is called one and can be set."""

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from beit.common.encoder import load_encoder, read_encoder_state
from beit.common.errors import InputError
from beit.common.vit.config import ViTConfig
from beit.finetune.artifact import load_classifier
from beit.finetune.classification.model import ImageClassifier
from beit.finetune.weights.import_findings import NORMALIZATIONS
from beit.finetune.weights.import_model import import_encoder
from beit.pretrain.model import MaskedImageModel
from beit.tests.foreign_weights import (
    DEPTH,
    DIM,
    HEADS,
    PATCH,
    SIDE,
    dino_training,
    mae_training,
    random_tensors,
    timm_vit,
)

IMAGENET, INCEPTION = NORMALIZATIONS["imagenet"], NORMALIZATIONS["inception"]
SHAPE = {"img_size": SIDE * PATCH, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}


def beit_weights():
    return dict(MaskedImageModel(ViTConfig(**SHAPE), vocab_size=11, num_masked=6).state_dict())


def finetuned_beit():
    shape = ViTConfig(**SHAPE, pos_bias="per_block", use_mask_token=False, init="finetune")
    return dict(ImageClassifier(shape, num_classes=3, pooling="mean", head_init_scale=1.0).state_dict())


def beit_v2_weights():
    layer = {name.replace("blocks.0", "cls_pt_layers.0"): w for name, w in beit_weights().items() if "blocks.0" in name}
    return beit_weights() | layer | random_tensors({"cls_pt_norm.weight": (DIM,), "cls_pt_lm_head.bias": (11,)}, 3)


def imported(tmp_path, value, name="w.pth", **options):
    torch.save(value, tmp_path / name)
    return import_encoder(tmp_path / name, tmp_path / f"encoder-{len(list(tmp_path.iterdir()))}", **options)


def flagged(value):
    return {"model": beit_weights(), "args": argparse.Namespace(imagenet_default_mean_and_std=value)}


PIXELS = {
    "a BEiT of ImageNet-1k, by the arguments of its training": (lambda: flagged(True), {}, IMAGENET, False),
    "a flag that is a number": (lambda: flagged(1), {}, IMAGENET, False),
    "one of other images": (lambda: flagged(False), {}, INCEPTION, False),
    "arguments as a dict": (lambda: {**flagged(True), "args": vars(flagged(True)["args"])}, {}, IMAGENET, False),
    "a fine-tuned BEiT": (lambda: {**flagged(True), "model": finetuned_beit()}, {}, IMAGENET, False),
    "what the user says counts more": (lambda: flagged(True), {"normalization": "inception"}, INCEPTION, False),
    "BEiT v2 by its layers": (lambda: {"model": beit_v2_weights()}, {}, IMAGENET, False),
    "BEiT v2 that was trained otherwise": (
        lambda: {**flagged(False), "model": beit_v2_weights()},
        {},
        INCEPTION,
        False,
    ),
    "BEiT v2 by its name": (finetuned_beit, {"name": "beitv2_base_pt1k_ft21k.pth"}, IMAGENET, True),
    "BEiT without arguments": (
        lambda: {"model": beit_weights(), "args": argparse.Namespace(lr=1)},
        {},
        INCEPTION,
        True,
    ),
    "arguments of timm": (
        lambda: {"state_dict": timm_vit(), "args": argparse.Namespace(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])},
        {"num_heads": HEADS},
        ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        False,
    ),
    "a plain ViT": (timm_vit, {"num_heads": HEADS}, IMAGENET, True),
    "MAE with its decoder": (mae_training, {"num_heads": HEADS}, IMAGENET, False),
    "DINO with its head": (dino_training, {"num_heads": HEADS}, IMAGENET, False),
}


@pytest.mark.parametrize("case", PIXELS)
def test_pixels_are_scaled_as_what_came_with_the_weights_says_else_a_guess_is_called_one(tmp_path, case):
    build, options, expected, is_guess = PIXELS[case]
    result = imported(tmp_path, build(), **options)
    assert result.config.normalization == expected
    line = next(line for line in result.summary.splitlines() if line.startswith("normalisation"))
    assert ("a guess" in line and "--normalization" in line) == is_guess
    assert result.config.provenance["findings"]["normalization"] in line


def test_what_only_the_pre_training_of_beit_v2_needs_is_left_out(tmp_path):
    result = imported(tmp_path, {"model": beit_v2_weights()})
    assert {name.split(".")[0] for name in result.config.provenance["left_out"]} == {
        "cls_pt_layers",
        "cls_pt_norm",
        "cls_pt_lm_head",
    }
    assert result.config.vocab_size == 11


def test_a_folder_that_does_not_normalise_is_followed_and_one_of_another_scale_refused(tmp_path):
    save_file(timm_vit(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": HEADS}))
    processor = tmp_path / "preprocessor_config.json"
    processor.write_text(json.dumps({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    stored = import_encoder(tmp_path, tmp_path / "encoder").config
    assert stored.normalization == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert stored.architecture.layer_norm_eps == 1e-12  # the default of the model that the folder is of
    for other in ({"do_rescale": False}, {"rescale_factor": 1 / 127.5}):
        processor.write_text(json.dumps(other))
        with pytest.raises(InputError, match="another factor than 1/255"):
            import_encoder(tmp_path, tmp_path / "none")


@pytest.mark.parametrize(
    ("plain", "average"),
    [("model", "model_ema"), ("module", "model_ema"), ("state_dict", "state_dict_ema"), ("student", "teacher")],
)
def test_of_weights_and_their_average_the_average_is_taken_and_both_are_named(tmp_path, plain, average):
    weights = {plain: timm_vit(seed=0), average: timm_vit(seed=1), "optimizer": {"state": {0: {"step": torch.ones(1)}}}}

    def cls_token(**options):
        result = imported(tmp_path, weights, num_heads=HEADS, **options)
        line = next(line for line in result.summary.splitlines() if line.startswith("weights"))
        assert repr(plain) in line and repr(average) in line and "--weights" in line and "optimizer" not in line
        folder = max(tmp_path.glob("encoder-*"), key=lambda path: int(path.name.split("-")[1]))
        return read_encoder_state(folder)["cls_token"]

    assert torch.equal(cls_token(), timm_vit(seed=1)["cls_token"])
    assert torch.equal(cls_token(weights="ema"), timm_vit(seed=1)["cls_token"])
    assert torch.equal(cls_token(weights="plain"), timm_vit(seed=0)["cls_token"])


def test_weights_that_are_not_there_are_not_replaced_by_others(tmp_path):
    for value in ({"model": timm_vit()}, timm_vit(), {"model": timm_vit(), "model_ema": None}):
        with pytest.raises(InputError, match=r"has no running average .*; leave --weights out"):
            imported(tmp_path, value, num_heads=HEADS, weights="ema")
    with pytest.raises(InputError, match=r"has no plain weights .*; leave --weights out"):
        imported(tmp_path, {"model_ema": timm_vit()}, num_heads=HEADS, weights="plain")


def test_an_average_in_a_form_that_is_not_known_is_named(tmp_path):
    result = imported(tmp_path, {"model": timm_vit(), "ema": {"shadow": {"a": torch.ones(1)}}}, num_heads=HEADS)
    assert "'ema', too" in result.summary and result.config.provenance["not_taken"] == ["ema"]


def test_a_number_of_heads_that_nothing_tells_is_called_a_guess(tmp_path):
    def heads(value, **options):
        result = imported(tmp_path, value, **options)
        first, second = result.summary.splitlines()[:2]
        is_guess = "--num-heads" in second
        assert is_guess == ("heads (a guess)" in first)
        return result.config.architecture.num_heads, is_guess

    assert heads(timm_vit(dim=384)) == (6, True)  # MoCo v3's small has 12
    assert heads(timm_vit(dim=384), num_heads=12) == (12, False)
    assert heads(timm_vit(dim=1280)) == (16, True)
    assert heads(beit_weights()) == (HEADS, False)
    with pytest.raises(InputError, match="has 4 attention heads, as its position table shows, not 2"):
        heads(beit_weights(), num_heads=2)


def test_what_only_code_tells_is_said_to_be_taken_as_usual(tmp_path):
    def usual(value):
        lines = imported(tmp_path, value, num_heads=HEADS).summary.splitlines()
        return next(line for line in lines if line.startswith("taken as usual"))

    assert "eps 1e-6" in usual(timm_vit()) and "gelu" in usual(timm_vit()) and "CLS" not in usual(timm_vit())
    assert "classes on CLS" in usual(timm_vit(head=3))
    assert "CLS" not in usual(finetuned_beit()), "a table of its own says that it is a BEiT, whose norms tell"
    without = {name: tensor for name, tensor in timm_vit().items() if name != "pos_embed"}
    assert "224 px" in usual(without)


@pytest.mark.parametrize("channels", [2, 4])
def test_weights_for_images_that_are_neither_rgb_nor_grey_are_refused(tmp_path, channels):
    with pytest.raises(InputError, match=f"images of {channels} channels.*weights for 3 channels or 1") as error:
        imported(tmp_path, timm_vit(dim=64, channels=channels))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("encoder-*"))


def test_an_encoder_for_other_images_that_was_imported_earlier_is_refused(tmp_path):
    imported(tmp_path, timm_vit(dim=64), name="earlier.pth")
    (folder,) = tmp_path.glob("encoder-*")
    document = json.loads((folder / "config.json").read_text())
    document["architecture"]["in_chans"] = 4
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"in_chans \(4\) must be 1 or 3"):
        load_encoder(folder)


def dino_positions(pos_embed, side):
    """Resize as DINO does: a scale of (side + 0.1) / SIDE, at which the cubic reads."""
    grid = pos_embed[:, 1:].reshape(1, SIDE, SIDE, DIM).permute(0, 3, 1, 2)
    scale = (side + 0.1) / SIDE
    resized = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([pos_embed[:, :1], resized.permute(0, 2, 3, 1).reshape(1, side * side, DIM)], dim=1)


POSITIONS = {
    "DINO's checkpoint": (dino_training, {}, "dino", False),
    "DINO's encoder, by its name": (timm_vit, {"name": "dino_vitbase16_pretrain.pth"}, "dino", True),
    "DINO's encoder, said to be": (timm_vit, {"pos_resize": "dino"}, "dino", False),
    "another version, by its name": (timm_vit, {"name": "dinov2_vits14.pth"}, "bicubic", True),
    "a plain ViT": (timm_vit, {}, "bicubic", True),
    "MAE": (mae_training, {}, "bicubic", False),
}


@pytest.mark.parametrize("case", POSITIONS)
def test_positions_are_resized_by_the_rule_of_those_who_trained_them(tmp_path, case):
    build, options, rule, is_guess = POSITIONS[case]
    result = imported(tmp_path, build(), num_heads=HEADS, **options)
    assert result.config.architecture.pos_resize == rule
    line = next(line for line in result.summary.splitlines() if line.startswith("positions at another"))
    assert ("a guess" in line and "--pos-resize" in line) == is_guess
    (folder,) = tmp_path.glob("encoder-*")
    plain = torch.nn.functional.interpolate(
        timm_vit()["pos_embed"][:, 1:].reshape(1, SIDE, SIDE, DIM).permute(0, 3, 1, 2), size=(6, 6), mode="bicubic"
    )
    expected = dino_positions(timm_vit()["pos_embed"], 6)[:, 1:]
    if rule != "dino":
        expected = plain.permute(0, 2, 3, 1).reshape(1, 36, DIM)
    found = load_encoder(folder, img_size=6 * PATCH).pos_embed[:, 1:]
    assert torch.equal(found, expected)
    assert torch.equal(load_encoder(folder).pos_embed, timm_vit()["pos_embed"])


def test_a_folder_of_timm_has_its_rules_of_positions_heads_and_pooling(tmp_path):
    save_file(timm_vit(head=2), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny", "global_pool": "token", "model_args": {"num_heads": HEADS}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = import_encoder(tmp_path, tmp_path / "encoder").config
    assert (stored.architecture.pos_resize, stored.architecture.num_heads) == ("timm", HEADS)
    grid = timm_vit()["pos_embed"][:, 1:].reshape(1, SIDE, SIDE, DIM).permute(0, 3, 1, 2)
    for side in (3, 6):
        resized = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
        found = load_encoder(tmp_path / "encoder", img_size=side * PATCH).pos_embed
        assert torch.equal(found[:, 1:], resized.permute(0, 2, 3, 1).reshape(1, side * side, DIM))
    assert load_classifier(tmp_path / "encoder")[1].pooling == "cls"
    for change, message in (({"global_pool": "avg"}, "pools by 'avg'"), ({"global_pool": "map"}, "pools by 'map'")):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            import_encoder(tmp_path, tmp_path / "none")
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": {"act_layer": "quick_gelu"}}))
    with pytest.raises(InputError, match="'quick_gelu'"):
        import_encoder(tmp_path, tmp_path / "none")

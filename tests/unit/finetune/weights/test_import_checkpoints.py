"""Checkpoints as trainers write them: the encoder found in them, which of two was taken said, the rest counted."""

import numpy as np
import pytest
import torch

from beit.common.encoder import load_encoder, read_encoder_state
from beit.common.errors import InputError
from beit.common.vit.description import read_encoder_config
from beit.finetune.segmentation.artifact import load_segmenter
from beit.finetune.segmentation.config import HeadConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import Segmenter
from beit.finetune.weights.import_findings import NORMALIZATIONS
from beit.finetune.weights.import_model import import_encoder
from beit.tests.foreign_weights import DEPTH, DIM, HEADS, PATCH, SIDE, random_tensors, timm_vit
from beit.tests.unit.finetune.weights.test_import import plain_vit, some_images

PROJECTOR = {"0.weight": (8, DIM), "1.running_mean": (8,), "3.weight": (5, 8)}


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def mlp(prefix):
    return random_tensors({prefix + name: shape for name, shape in PROJECTOR.items()}, 9)


def moco_v3():
    base, momentum = timm_vit(), timm_vit(seed=1)
    state = under("module.base_encoder.", base) | mlp("module.base_encoder.head.") | mlp("module.predictor.")
    state |= under("module.momentum_encoder.", momentum) | mlp("module.momentum_encoder.head.")
    return {"epoch": 300, "arch": "vit_base", "state_dict": state, "scaler": {"scale": 1.0}}


def solo_learn():
    state = under("backbone.", timm_vit()) | under("momentum_backbone.", timm_vit(seed=1))
    state |= mlp("projector.") | {"classifier.weight": torch.zeros(3, DIM), "queue": torch.zeros(2)}
    return {"state_dict": state, "pytorch-lightning_version": "2.5.0", "hyper_parameters": {"lr": 1.0}}


def ibot():
    head = random_tensors({"head.mlp.0.weight": (8, DIM), "head.last_layer2.weight_v": (5, 8)}, 1)
    masked = {"backbone.masked_embed": torch.ones(1, DIM)}
    student = under("module.", under("backbone.", timm_vit(seed=1)) | head | masked)
    return {"student": student, "teacher": under("backbone.", timm_vit()) | head, "epoch": 3}


def wrapped_within():
    return {
        name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module."): tensor
        for name, tensor in under("_orig_mod._fsdp_wrapped_module.", timm_vit()).items()
    }


WAYS = {
    "MoCo v3, whose evaluation takes the plain encoder": (moco_v3, "base_encoder", "predictor"),
    "solo-learn": (solo_learn, "under backbone.", "projector"),
    "iBOT": (ibot, "teacher", "head.last_layer2"),
    "Lightning": (lambda: {"state_dict": under("model.backbone.", timm_vit()) | mlp("model.neck.")}, "", "model.neck"),
    "Fabric": (lambda: {"model": under("_forward_module.model.", timm_vit())}, "", None),
    "FSDP, compiled, with checkpointed blocks": (wrapped_within, "", None),
    "DeepSpeed": (lambda: {"module": under("module.", timm_vit()), "ds_config": {}}, "", None),
    "DDP in torch.compile": (lambda: under("_orig_mod.module.", timm_vit()), "", None),
    "numpy beside them": (
        lambda: {"model": timm_vit(), "best_acc": np.float64(81.2), "epoch": np.int64(3), "seen": np.arange(3)},
        "",
        None,
    ),
    "DINOv2's training, in chunks": (
        lambda: {
            "teacher": {
                n.replace("blocks.1.", "blocks.0.1.").replace("blocks.0.n", "blocks.0.0.n"): t
                for n, t in under("backbone.", timm_vit()).items()
                if not n.startswith("backbone.blocks.0.")
            }
            | {
                n.replace("blocks.0.", "blocks.0.0."): t
                for n, t in under("backbone.", timm_vit()).items()
                if n.startswith("backbone.blocks.0.")
            }
            | mlp("dino_head.")
        },
        "teacher",
        "dino_head",
    ),
}


def imported(tmp_path, value, **options):
    torch.save(value, tmp_path / "w.pth")
    return import_encoder(tmp_path / "w.pth", tmp_path / "encoder", num_heads=HEADS, **options)


@pytest.mark.parametrize("way", WAYS)
def test_the_encoder_is_found_and_what_is_beside_it_counted(tmp_path, way):
    build, said, left_out = WAYS[way]
    result = imported(tmp_path, build())
    with torch.no_grad():
        ours, theirs = (
            load_encoder(tmp_path / "encoder").forward_features(some_images()),
            plain_vit(timm_vit(), some_images()),
        )
    assert (ours - theirs).abs().max() < 1e-5
    assert said in result.summary
    lines = [line for line in result.summary.splitlines() if line.startswith("left out")]
    assert bool(lines) == (left_out is not None)
    assert left_out is None or left_out in lines[0]


@pytest.mark.parametrize("build", [moco_v3, solo_learn])
def test_the_momentum_encoder_is_had_for_the_asking(tmp_path, build):
    result = imported(tmp_path, build(), weights="ema")
    assert torch.equal(read_encoder_state(tmp_path / "encoder")["cls_token"], timm_vit(seed=1)["cls_token"])
    assert "a running average" in result.summary and "--weights" in result.summary


def test_an_encoder_under_an_unknown_name_is_named_and_found_where_the_user_says(tmp_path):
    state = under("tower.image.", timm_vit()) | under("other.", timm_vit(seed=1)) | mlp("text.")
    with pytest.raises(InputError, match=r"stand under other\., tower\.image\.; give --prefix other"):
        imported(tmp_path, state)
    with pytest.raises(InputError, match=r"no encoder under --prefix tower; .*tower\.image\."):
        imported(tmp_path, state, prefix="tower")
    with pytest.raises(InputError, match=r"no encoder under --prefix tower; its encoder has none; leave --prefix out$"):
        imported(tmp_path, timm_vit(), prefix="tower")
    imported(tmp_path, state, prefix="tower.image")
    assert torch.equal(read_encoder_state(tmp_path / "encoder")["cls_token"], timm_vit()["cls_token"])
    assert read_encoder_config(tmp_path / "encoder").provenance["prefix"] == "tower.image."


class Settings:
    """Of a library that need not be there."""


def test_settings_of_a_trainer_are_put_aside_and_named(tmp_path):
    Settings.__module__ = "omegaconf.dictconfig"
    import sys
    import types

    sys.modules["omegaconf"], module = types.ModuleType("omegaconf"), types.ModuleType("omegaconf.dictconfig")
    sys.modules["omegaconf.dictconfig"] = module
    module.Settings = Settings
    try:
        torch.save({"state_dict": timm_vit(), "hyper_parameters": Settings()}, tmp_path / "w.pth")
    finally:
        del sys.modules["omegaconf"], sys.modules["omegaconf.dictconfig"]
    result = import_encoder(tmp_path / "w.pth", tmp_path / "encoder", num_heads=HEADS)
    assert "not read, beside the weights: objects of omegaconf" in result.summary


def dino_v2():
    state = timm_vit()
    for block in range(DEPTH):
        state |= {f"blocks.{block}.ls{i}.gamma": torch.full((DIM,), 0.5 + i) for i in (1, 2)}
    return state | {"mask_token": torch.ones(1, DIM)}


def test_dinov2_without_registers_has_its_scale_its_mask_and_its_rule_of_positions(tmp_path):
    stored = imported(tmp_path, dino_v2()).config
    state = read_encoder_state(tmp_path / "encoder")
    assert torch.equal(state["blocks.1.gamma_2"], torch.full((DIM,), 2.5))
    assert torch.equal(state["mask_token"], torch.ones(1, 1, DIM))
    assert stored.architecture.pos_resize == "dino" and stored.architecture.init_values > 0
    assert stored.normalization == NORMALIZATIONS["imagenet"]


def test_positions_of_patches_alone_as_deit_iii_has_them_get_a_zero_for_cls(tmp_path):
    state = timm_vit()
    state["pos_embed"][:, 0] = 0
    bare = state | {"pos_embed": state["pos_embed"][:, 1:].clone()}
    result = imported(tmp_path, bare)
    assert "made up: pos_embed" in result.summary
    with torch.no_grad():
        ours = load_encoder(tmp_path / "encoder").forward_features(some_images())
    assert (ours - plain_vit(state, some_images())).abs().max() < 1e-5


REFUSED = {
    "register_tokens": "registers",
    "dist_token": "a second class token",
    "blocks.0.mlp.w12.weight": "SwiGLU",
    "blocks.0.attn.q_norm.weight": "qk-norm",
    "rope.freqs_cos": "RoPE",
    "rope_embed.periods": "RoPE",
    "norm_pre.weight": "a norm before its blocks",
    "blocks.0.attn.inner_attn_ln.weight": "norms inside its blocks",
    "patch_embed.proj.0.weight": "convolutional stem",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_computes_something_else_is_called_by_its_name(tmp_path, name):
    with pytest.raises(InputError, match=REFUSED[name].replace("(", r"\(")) as error:
        imported(tmp_path, timm_vit() | {name: torch.zeros(2)})
    assert name in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "encoder").exists()


def test_pieces_of_fsdp_are_refused(tmp_path):
    with pytest.raises(InputError, match="FULL_STATE_DICT"):
        imported(tmp_path, {"_fsdp_wrapped_module._flat_param": torch.zeros(9)})


def test_every_tensor_and_parameter_is_accounted_for(tmp_path):
    result = imported(tmp_path, moco_v3())
    total = len(moco_v3()["state_dict"])
    assert f"taken: {len(timm_vit())} of {total} tensors of the file" in result.summary
    assert f"left out: {total - len(timm_vit())} tensors" in result.summary
    assert len(read_encoder_config(tmp_path / "encoder").provenance["left_out"]) == total - len(timm_vit())


def test_a_segmenter_of_the_released_code_keeps_head_classes_and_colours(tmp_path):
    from beit.common.vit.config import ViTConfig

    shape = ViTConfig(
        img_size=SIDE * PATCH, patch_size=PATCH, embed_dim=DIM, depth=4, num_heads=HEADS, pos_bias="per_block",
        use_mask_token=False, init="finetune",
    )  # fmt: skip
    head = resolve_head(HeadConfig(kind="upernet", norm="batch", channels=16), shape)
    model = Segmenter(shape, num_classes=3, head=head).eval()
    state = {
        name.replace("neck.", "backbone.")
        if name.startswith("neck.")
        else name
        if name.startswith(("decode", "auxiliary"))
        else f"backbone.{name}": tensor
        for name, tensor in model.state_dict().items()
    }
    meta = {"CLASSES": ("wall", "sky", "sky"), "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]], "epoch": 3}
    result = imported(tmp_path, {"meta": meta, "state_dict": state})
    found, stored, info = load_segmenter(tmp_path / "encoder")
    assert stored.task == "segmentation" and info.head.blocks == head.blocks and "UPerNet of 3" in result.summary
    assert info.classes.names == ("wall", "sky (1)", "sky (2)") and info.classes.colours[2] == (7, 8, 9)
    assert found.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        # Not to the last bit: some processors convolve otherwise where weights begin elsewhere in memory.
        torch.testing.assert_close(found(some_images()), model(some_images()), rtol=0, atol=1e-5)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.state_dict().items())

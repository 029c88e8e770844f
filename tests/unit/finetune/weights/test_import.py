"""Weights of other projects: every name mapped, every shape checked, nothing executed, everything usable after."""

import argparse
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from beit.common.encoder import load_encoder, read_encoder_state
from beit.common.errors import InputError
from beit.common.vit.config import ViTConfig
from beit.common.vit.description import read_encoder_config
from beit.finetune.artifact import load_classifier
from beit.finetune.classification.model import ImageClassifier
from beit.finetune.prediction.predict import predict
from beit.finetune.probe.run import run_probe
from beit.finetune.train import run
from beit.finetune.weights.import_findings import NORMALIZATIONS
from beit.finetune.weights.import_model import import_encoder
from beit.pretrain.model import MaskedImageModel
from beit.tests.foreign_weights import DEPTH, DIM, HEADS, PATCH, SIDE, dino_training, mae_training, timm_vit
from beit.tests.unit.finetune.colours import finetune_config


def imported(tmp_path, value, name="w.pth", num_heads=HEADS):
    if name.endswith(".safetensors"):
        save_file(value, tmp_path / name)
    else:
        torch.save(value, tmp_path / name)
    import_encoder(tmp_path / name, tmp_path / "encoder", num_heads=num_heads)
    return tmp_path / "encoder"


def plain_vit(state, images):
    """Compute a ViT as DINO, MAE, DeiT and timm do, key bias and all, from the tensors under their names."""
    functional = torch.nn.functional

    def norm(hidden, name):
        return functional.layer_norm(hidden, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    patches = functional.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], PATCH)
    cls_token = state["cls_token"].expand(len(images), -1, -1)
    hidden = torch.cat([cls_token, patches.flatten(2).transpose(1, 2)], 1) + state["pos_embed"]
    for i in range(DEPTH):
        block = f"blocks.{i}"
        qkv = functional.linear(norm(hidden, f"{block}.norm1"), *linear(state, f"{block}.attn.qkv"))
        query, key, value = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden + functional.linear(mixed, *linear(state, f"{block}.attn.proj"))
        inner = functional.gelu(functional.linear(norm(hidden, f"{block}.norm2"), *linear(state, f"{block}.mlp.fc1")))
        hidden = hidden + functional.linear(inner, *linear(state, f"{block}.mlp.fc2"))
    return norm(hidden, "norm")


def linear(state, name):
    return state[f"{name}.weight"], state[f"{name}.bias"]


def some_images():
    return torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(5))


def deit():
    return {"model": timm_vit(), "epoch": 3, "args": argparse.Namespace(lr=1)}


WAYS = {
    "plain .pth, as DINO's encoder": (timm_vit, "w.pth"),
    "timm .safetensors": (timm_vit, "w.safetensors"),
    "under model beside arguments, as MAE and DeiT": (deit, "w.pth"),
    "MAE with its decoder": (lambda: {"model": mae_training()}, "w.pth"),
    "a training checkpoint of DINO": (dino_training, "w.pth"),
    "wrapped by DDP": (lambda: {"state_dict": timm_vit(prefix="module.")}, "w.pth"),
}


@pytest.mark.parametrize("way", WAYS)
def test_features_are_those_of_the_model_it_came_from(tmp_path, way):
    build, name = WAYS[way]
    encoder = load_encoder(imported(tmp_path, build(), name))
    with torch.no_grad():
        ours, theirs = encoder.forward_features(some_images()), plain_vit(timm_vit(), some_images())
    assert (ours - theirs).abs().max() < 1e-5
    assert encoder.normalization == NORMALIZATIONS["imagenet"]
    stored = read_encoder_config(tmp_path / "encoder")
    assert stored.provenance["family"] == ("MAE" if "MAE with" in way else "ViT")
    assert list(stored.provenance["sha256"]) == [name]
    assert stored.architecture.final_norm and stored.architecture.init_values == 0


def test_a_supervised_head_is_kept_and_predicts(tmp_path):
    state = timm_vit(head=3)
    model, stored = load_classifier(imported(tmp_path, state))
    assert (stored.class_names, stored.pooling) == (("0", "1", "2"), "cls")
    with torch.no_grad():
        theirs = torch.nn.functional.linear(plain_vit(state, some_images())[:, 0], *linear(state, "head"))
        assert (model(some_images()) - theirs).abs().max() < 1e-5


def test_an_official_beit_keeps_its_head_of_visual_words(tmp_path):
    shape = ViTConfig(img_size=32, patch_size=8, embed_dim=DIM, depth=DEPTH, num_heads=HEADS)
    model = MaskedImageModel(shape, vocab_size=11, num_masked=6).eval()
    index = {"rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.int64)}
    folder = imported(tmp_path, {"model": {**model.state_dict(), **index}}, num_heads=None)
    stored = read_encoder_config(folder)
    assert (stored.task, stored.vocab_size, stored.normalization) == ("pretrain", 11, NORMALIZATIONS["inception"])
    assert stored.architecture.num_heads == HEADS and stored.architecture.pos_bias == "shared"
    assert not stored.architecture.final_norm
    state = read_encoder_state(folder)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        ours, theirs = load_encoder(folder).forward_features(some_images()), model.forward_features(some_images())
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_finetuned_beit_of_the_release_or_of_timm_predicts_as_before(tmp_path, pooling):
    shape = ViTConfig(
        img_size=32,
        patch_size=8,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        pos_bias="per_block",
        use_mask_token=False,
        init="finetune",
    )
    model = ImageClassifier(shape, num_classes=5, pooling=pooling, head_init_scale=1.0).eval()
    buffers = {f"blocks.{i}.attn.relative_position_index": torch.zeros(17, 17, dtype=torch.int64) for i in range(DEPTH)}
    folder = imported(tmp_path, {"module": {**model.state_dict(), **buffers}}, num_heads=None)
    found, stored = load_classifier(folder)
    assert (stored.pooling, stored.class_names, stored.vocab_size) == (pooling, tuple("01234"), None)
    with torch.no_grad():
        assert torch.equal(found(some_images()), model(some_images()))
    assert load_encoder(folder, img_size=48).config.num_patches == 36


def refused(state_or_path, tmp_path, message, num_heads=HEADS):
    path = state_or_path
    if isinstance(path, dict):
        path = tmp_path / "bad.pth"
        torch.save(state_or_path, path)
    with pytest.raises(InputError, match=message) as error:
        import_encoder(path, tmp_path / "none", num_heads=num_heads)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "none").exists()


def test_what_is_unknown_missing_or_of_another_shape_is_refused_by_name(tmp_path):
    state = timm_vit()
    refused(
        state | {"blocks.0.adapter.weight": torch.zeros(2)}, tmp_path, r"unexpected tensor 'blocks.0.adapter.weight'"
    )
    refused(state | {"dist_token": torch.zeros(1, 1, DIM)}, tmp_path, "'dist_token': a second class token")
    refused({k: v for k, v in state.items() if k != "blocks.1.mlp.fc2.bias"}, tmp_path, "blocks.1.mlp.fc2.bias")
    refused({k: v for k, v in state.items() if k != "cls_token"}, tmp_path, "lacks the tensor 'cls_token'")
    refused(state | {"norm.bias": torch.zeros(DIM + 1)}, tmp_path, r"norm.bias has shape \(49,\), must be \(48,\)")
    refused(state | {"norm.bias": torch.full((DIM,), float("nan"))}, tmp_path, "not finite")
    refused(state | {"pos_embed": torch.zeros(1, 15, DIM)}, tmp_path, "15 positions, must be CLS and a square")
    refused(state | {"cls_token": torch.tensor(1.0)}, tmp_path, "cls_token has 0 dimensions, must have 3")
    refused(state | {"norm.bias": torch.zeros(DIM).to_sparse()}, tmp_path, "'norm.bias' is sparse, quantized or empty")
    empty_head = {"head.weight": torch.zeros(0, DIM), "head.bias": torch.zeros(0)}
    refused(state | empty_head, tmp_path, "a head of no classes")
    refused(state, tmp_path, "give --num-heads", None)
    refused(state, tmp_path, "multiple of model.num_heads", 5)


def test_what_is_no_weight_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "text.safetensors").write_text("<html>not found</html>")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    torch.save({"epoch": 3, "note": "no weights"}, tmp_path / "note.pth")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("text.pth", "text.pth"),
        ("text.safetensors", "not a safetensors file"),
        ("tensor.pth", "holds a Tensor, not a state dict"),
        ("note.pth", "no state dict under"),
        ("folder", "has none of model.safetensors"),
        ("missing.pth", "does not exist"),
        ("missing.onnx", "does not exist"),
    ):
        refused(tmp_path / name, tmp_path, message)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    torch.save(timm_vit(), tmp_path / "good.pth")
    with pytest.raises(InputError, match="not an empty folder"):
        import_encoder(tmp_path / "good.pth", tmp_path / "used", num_heads=HEADS)


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_file_is_executed(tmp_path, legacy):
    canary = tmp_path / "canary"
    path = tmp_path / "hostile.pth"
    torch.save({"model": Hostile(canary)}, path, _use_new_zipfile_serialization=not legacy)
    refused(path, tmp_path, "hostile.pth")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Hostile(canary)))
    refused(tmp_path / "plain.bin", tmp_path, "plain.bin")
    assert not canary.exists()


def test_a_folder_says_what_tensors_cannot(tmp_path):
    folder = tmp_path / "timm"
    folder.mkdir()
    save_file(timm_vit(head=2), folder / "model.safetensors")
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_tiny", "pretrained_cfg": cfg}))
    import_encoder(folder, tmp_path / "encoder", num_heads=HEADS)
    assert read_encoder_config(tmp_path / "encoder").normalization.mean == (0.1, 0.2, 0.3)
    (folder / "config.json").write_text(json.dumps({"model_type": "swin"}))
    refused(folder, tmp_path, "model of type 'swin'")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_act": "gelu_new"}))
    refused(folder, tmp_path, "'gelu_new'")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "config.json").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"cls_token": "../part.safetensors"}}))
    refused(folder, tmp_path, "weight files of its own folder")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(timm_vit(head=2), "part.safetensors")}))
    import_encoder(folder, tmp_path / "from-parts", num_heads=HEADS)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_imported_encoder_is_finetuned_probed_and_used(finished, tmp_path, pooling):
    encoder = imported(tmp_path, timm_vit(head=7))
    shape = [f"encoder={encoder}", f"data.val={finished.val}", "image.img_size=16", "image.patch_size=none"]
    shape += [f"model.{name}=none" for name in ("embed_dim", "depth", "num_heads")]
    config = finetune_config(*shape, "train.steps=2", f"classifier.pooling={pooling}")
    run(config, data=str(finished.train), run_dir=tmp_path / "run")
    stored = read_encoder_config(tmp_path / "run")
    assert stored.architecture.use_abs_pos_emb and not stored.architecture.final_norm
    rows = [prediction for batch in predict(tmp_path / "run", str(finished.val)) for prediction in batch]
    assert len(rows) == 20
    if pooling == "cls":  # the norm is the encoder's, and the probes need no second training
        for task in ("linear-probe", "knn"):
            assert "best" in run_probe(task, config, data=str(finished.train), run_dir=tmp_path / "probe")
        kept, description = load_classifier(tmp_path / "probe")
        assert description.architecture.final_norm
        assert "norm.weight" in kept.state_dict()


def test_an_import_that_cannot_be_written_leaves_nothing_and_the_next_one_works(tmp_path, monkeypatch):
    torch.save(timm_vit(), tmp_path / "good.pth")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("beit.finetune.weights.import_model.load_encoder", full)
        with pytest.raises(OSError, match="No space left"):
            import_encoder(tmp_path / "good.pth", tmp_path / "new/encoder", num_heads=HEADS)
    assert [path.name for path in tmp_path.iterdir()] == ["good.pth"]
    import_encoder(tmp_path / "good.pth", tmp_path / "new/encoder", num_heads=HEADS)

"""timm itself builds what was exported for it, in both of its ways, and computes the same.

timm imports torchvision at once, in every version from 0.4.12 to 1.0.31 (tried), so both must be installed. Tried with
timm 1.0.31: a torchvision built for this torch, or, since nothing of its compiled parts is needed, torchvision 0.16.2.
"""

import json

import pytest
import torch

from beit.common.encoder import read_encoder_state, save_model
from beit.common.vit.config import ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.finetune.weights.export.exporter import export_model
from beit.finetune.weights.export.source import our_outputs, probe_images, read_source
from beit.tests.export_models import CLASSES, CLASSIFIERS, ENCODERS, MASKED, NORMALIZATION, write_model

try:
    import timm
    import timm.data
except Exception as error:  # a torchvision of another torch fails in ways of its own
    pytest.skip(f"needs timm and a torchvision built for this torch ({error})", allow_module_level=True)

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("kind", [*ENCODERS, *MASKED, *CLASSIFIERS])
def test_the_folder_is_built_by_its_name_and_by_its_path(tmp_path, kind):
    model = write_model(tmp_path / "model", kind)
    exported = export_model(model, tmp_path / "out", module="timm")
    assert "timm and beit on the same 3 images, float32" in " ".join(exported.summary.split())
    config = json.loads((tmp_path / "out/config.json").read_text())
    named = timm.create_model(
        config["architecture"],
        checkpoint_path=str(tmp_path / "out/model.safetensors"),
        num_classes=config["num_classes"],
        **config["model_args"],
    ).eval()
    local = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = probe_images(read_source(model))
    with torch.no_grad():
        assert torch.equal(named(images), local(images))
    state, theirs = read_encoder_state(model), local.state_dict()
    assert all(torch.equal(state[name], theirs[name]) for name in state.keys() & theirs.keys())
    data = timm.data.resolve_model_data_config(local)
    assert (tuple(data["mean"]), tuple(data["std"]), tuple(data["input_size"])) == (*NORMALIZATION, (3, 32, 32))
    assert (data["interpolation"], data["crop_pct"], data["crop_mode"]) == ("bicubic", 1.0, "center")


def test_its_classes_and_logits_are_ours(tmp_path):
    model = write_model(tmp_path / "model", "classifier mean")
    export_model(model, tmp_path / "out", module="timm")
    found = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    source = read_source(model)
    images = probe_images(source)
    with torch.no_grad():
        difference = (found(images) - our_outputs(source, images)["logits"]).abs().max()
    assert difference < 1e-5 and tuple(found.pretrained_cfg["label_names"]) == CLASSES


def test_another_image_size_is_the_same_resize(tmp_path):
    for kind in ("classifier mean", "encoder absolute"):
        model = write_model(tmp_path / kind, kind)
        assert "timm and beit" in export_model(model, tmp_path / f"{kind} 48", module="timm", img_size=48).summary


@pytest.mark.slow
def test_the_base_model_is_the_one_that_timm_has_a_name_for(tmp_path):
    named = timm.create_model("beit_base_patch16_224", num_classes=3)
    shape = ViTConfig(pos_bias="per_block", use_mask_token=False)
    config = EncoderConfig(
        architecture=shape, normalization=NORMALIZATION, task="classification", class_names=CLASSES, pooling="mean"
    )
    save_model(tmp_path / "model", named.state_dict(), config)
    export_model(tmp_path / "model", tmp_path / "out", module="timm")
    again = timm.create_model(
        "beit_base_patch16_224", checkpoint_path=str(tmp_path / "out/model.safetensors"), num_classes=3
    )
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in named.state_dict().items())

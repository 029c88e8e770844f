"""An encoder is well if its weights are those that were written, finite, and all that its network has."""

import json
import os

import pytest
import torch

from beit.common.overview.doctor.findings import guarded
from beit.common.overview.doctor.health.subjects import find_subject
from beit.common.vit.config import ViTConfig
from beit.pretrain.model import MaskedImageModel
from beit.tests.encoders import save_encoder

SHAPE = ViTConfig(img_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=2)


def write(folder, **changed):
    torch.manual_seed(0)
    state = MaskedImageModel(SHAPE, vocab_size=8, num_masked=4).state_dict()
    save_encoder(folder, state | changed, architecture=SHAPE, mean=[0.5] * 3, std=[0.5] * 3, provenance={"steps": 5})
    return folder


def look(folder):
    subject = find_subject(str(folder))
    assert subject.kind == "encoder"
    (finding,) = guarded(subject.kind, subject.check, subject.mend)
    assert "\n" not in finding.as_text() and bool(finding.mend) == (finding.level != "ok")
    return finding


def test_an_encoder_as_it_was_written_is_well(tmp_path):
    finding = look(write(tmp_path / "encoder"))
    assert finding.level == "ok" and "1 block of 8, 16 px in patches of 4" in finding.what
    assert finding.what.endswith("all as written")


def test_one_of_before_has_no_hash_and_is_not_said_to_be_proved(tmp_path):
    folder = write(tmp_path / "encoder")
    description = json.loads((folder / "config.json").read_text())
    description.pop("weights_sha256")
    (folder / "config.json").write_text(json.dumps(description))
    assert look(folder).what.endswith("wrote no hash of them")


def test_weights_that_are_not_finite_are_a_fault(tmp_path):
    folder = write(tmp_path / "encoder", cls_token=torch.full((1, 1, 8), torch.nan))
    finding = look(folder)
    assert finding.level == "fault" and "cls_token" in finding.what


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "description gone", "description", "another's"])
def test_what_is_damaged_is_a_fault(tmp_path, damage):
    folder = write(tmp_path / "encoder")
    weights, description = folder / "model.safetensors", folder / "config.json"
    if damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    elif damage == "cut":
        os.truncate(weights, 99)
    elif damage == "gone":
        weights.unlink()
    elif damage == "description gone":
        description.unlink()
    elif damage == "description":
        description.write_text("{")
    else:
        description.write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    assert look(folder).level == "fault"

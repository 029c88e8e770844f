"""What is given for an encoder and is none of ours is named, with the command that makes it one."""

import json
import shlex

import pytest
import torch
from safetensors.torch import save_file

from beit.common.errors import InputError
from beit.common.vit.description import read_encoder_config
from beit.finetune.weights.import_model import import_encoder
from beit.tests.foreign_weights import HEADS, timm_vit


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(timm_vit(), "dino base.pth")
    torch.save({"epoch": 1}, "vit-s-300ep.pth.tar")
    for name, config in (
        ("hf", {"model_type": "vit", "num_attention_heads": HEADS}),
        ("timm", {"architecture": "vit_tiny", "model_args": {"num_heads": HEADS}}),
        ("bare", None),
    ):
        (tmp_path / name).mkdir()
        save_file(timm_vit(), tmp_path / name / "model.safetensors")
        if config is not None:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "one").mkdir()
    torch.save(timm_vit(), "one/weights.bin")
    (tmp_path / "empty").mkdir()


def said(given):
    with pytest.raises(InputError) as error:
        read_encoder_config(given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ("dino base.pth", "beit import 'dino base.pth' 'encoders/dino base'"),
        ("vit-s-300ep.pth.tar", "beit import vit-s-300ep.pth.tar encoders/vit-s-300ep"),
        ("hf", "beit import hf encoders/hf"),
        ("hf/model.safetensors", "beit import hf encoders/hf"),
        ("timm", "beit import timm encoders/timm"),
        ("bare", "beit import bare/model.safetensors encoders/bare"),
        ("bare/model.safetensors", "beit import bare/model.safetensors encoders/bare"),
        ("one", "beit import one/weights.bin encoders/weights"),
        ("https://host/dino.pth", "beit import https://host/dino.pth encoders/dino"),
        ("s3://bucket/a b/dino.pth", "beit import 's3://bucket/a b/dino.pth' encoders/dino"),
        ("hf://facebook/dino-vitb16", "beit import hf://facebook/dino-vitb16 encoders/dino-vitb16"),
        ("vit_base_patch16_224", "beit import hf://OWNER/vit_base_patch16_224 encoders/vit_base_patch16_224"),
        ("facebook/dino-vitb16", "beit import hf://facebook/dino-vitb16 encoders/dino-vitb16"),
    ],
)
def test_the_command_that_imports_it_is_named(tmp_path, given, command):
    assert command in said(given)
    source, target = shlex.split(command)[2:]
    if (tmp_path / source).exists() and "300ep" not in source:
        import_encoder(tmp_path / source, tmp_path / target, num_heads=HEADS)
        read_encoder_config(target)


def test_what_import_would_not_help_is_not_sent_there(tmp_path):
    assert "beit import" not in said("empty")
    assert "beit import" not in said(tmp_path / "runs/pretrain/encoder")
    import_encoder(tmp_path / "hf", tmp_path / "encoder")
    assert said("encoder/model.safetensors").endswith("give its folder, encoder")
    for again in ("encoder", "encoder/model.safetensors"):
        with pytest.raises(InputError, match="is an encoder of beit already"):
            import_encoder(tmp_path / again, tmp_path / "again")


def test_a_weight_file_in_its_folder_is_read_with_what_the_folder_says(tmp_path):
    (tmp_path / "hf/preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    config = import_encoder(tmp_path / "hf/model.safetensors", tmp_path / "encoder").config
    assert (config.normalization.mean, config.architecture.num_heads) == ((0.5, 0.5, 0.5), HEADS)


def test_a_run_that_is_not_finished_is_not_taken_for_a_folder_of_something_else(tmp_path):
    run = tmp_path / "runs/early"
    run.mkdir(parents=True)
    for name in ("config.toml", "environment.json"):
        (run / name).write_text("")
    way_on = f"to go on, run the command that started it again ({run}/environment.json has it)"
    for name in ("", "encoder", "model", "last"):
        message = said(run / name)
        assert message.startswith(f"{run} is a run that has no {name or 'weights for use'} yet: it is not finished")
        assert message.endswith(way_on)
        assert "so far" not in message
    import_encoder(tmp_path / "hf", tmp_path / "encoder")
    (tmp_path / "encoder").rename(run / "last")
    for name in ("", "model"):
        assert f"so far it has {run}/last; {way_on}" in said(run / name)
    assert "there is no such folder" in said(tmp_path / "runs/other/model")

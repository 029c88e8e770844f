"""Weights of others and exports of ours, damaged, as `beit import` reads them."""

import json
import shutil

import torch
from safetensors.torch import save_file

from beit.common.errors import InputError
from beit.common.vit.description import read_encoder_config
from beit.finetune.weights.export.exporter import export_model
from beit.finetune.weights.import_model import import_encoder
from beit.tests.export_models import write_model
from beit.tests.foreign_weights import HEADS, timm_vit
from beit.tests.fuzz.mutations import mutate_bytes, mutate_json


def write_sources(folder):
    """Write one source of each form and return the files to damage."""
    kinds = {"official": "segmenter upernet", "timm": "classifier mean", "huggingface": "masked shared"}
    for form, kind in kinds.items():
        export_model(write_model(folder / "models" / form, kind), folder / form, module=form)
    torch.save({"model": timm_vit(), "epoch": 3, "args": {"mean": [0.5] * 3, "std": [0.5] * 3}}, folder / "plain.pth")
    parts = folder / "parts"
    parts.mkdir()
    names = list(timm_vit())
    for number, part in enumerate((names[:4], names[4:])):
        save_file({name: timm_vit()[name] for name in part}, parts / f"model-{number}.safetensors")
    listed = {name: f"model-{0 if place < 4 else 1}.safetensors" for place, name in enumerate(names)}
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    (parts / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": HEADS}))
    files = [*folder.glob("*/*.safetensors"), *folder.glob("*/*.json"), *folder.glob("official/*.pth")]
    return [*files, folder / "plain.pth"]


def fuzz_weights(folder):
    sources, made = folder / "sources", folder / "encoder"
    sources.mkdir()
    sound = {path: path.read_bytes() for path in sorted(write_sources(sources))}

    def fuzz(rng):
        path = rng.choice(list(sound))
        path.write_bytes((mutate_json if path.suffix == ".json" else mutate_bytes)(sound[path], rng))
        source = path if path.parent == sources else path.parent
        try:
            import_encoder(source, made)
            read_encoder_config(made)
        except InputError as error:
            assert "\n" not in str(error)
            assert not made.exists()
        finally:
            path.write_bytes(sound[path])
            shutil.rmtree(made, ignore_errors=True)

    return fuzz

"""docs/migration.md: every official option stands in it, every setting exists with that default, every command runs.

The options are those of microsoft/unilm at commit 768a3c8, written down as facts.
"""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from beit import cli
from beit.common.config import _all_keys, config_to_dict, flatten
from beit.common.vit.config import ViTConfig
from beit.finetune.commands import RECIPES, SEGMENTATION_RECIPES
from beit.finetune.config import FinetuneConfig
from beit.finetune.segmentation.config import SegmentationConfig
from beit.pretrain.commands import RECIPES as PRETRAIN_RECIPES
from beit.pretrain.config import PretrainConfig
from beit.pretrain.model import MaskedImageModel
from beit.tests.dall_e_files import use_small_network, write_pickle
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.support import write_images
from beit.tests.unit.finetune.segmentation.scenes import write_scenes
from beit.tokenize.config import TokenizeConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs/migration.md").read_text()
_RESUMING = "resume auto_resume no_auto_resume start_epoch num_workers pin_mem no_pin_mem"
_LAUNCHED = "world_size local_rank dist_on_itp dist_url"
_SHAPE = "model rel_pos_bias disable_rel_pos_bias abs_pos_emb layer_scale_init_value"
_OPTIMIZER = "opt opt_eps opt_betas clip_grad momentum weight_decay weight_decay_end lr warmup_lr min_lr warmup_epochs"
OFFICIAL = {
    "Pre-training": (
        PretrainConfig,
        f"batch_size epochs save_ckpt_freq discrete_vae_weight_path discrete_vae_type {_SHAPE} num_mask_patches "
        "max_mask_patches_per_block min_mask_patches_per_block input_size second_input_size drop_path "
        f"{_OPTIMIZER} warmup_steps train_interpolation second_interpolation data_path imagenet_default_mean_and_std "
        f"output_dir log_dir device seed {_RESUMING} {_LAUNCHED}",
    ),
    "Fine-tuning": (
        FinetuneConfig,
        f"batch_size epochs update_freq save_ckpt_freq {_SHAPE} input_size drop attn_drop_rate drop_path "
        "disable_eval_during_finetuning model_ema model_ema_decay model_ema_force_cpu "
        f"{_OPTIMIZER} layer_decay warmup_steps color_jitter aa smoothing train_interpolation crop_pct reprob remode "
        "recount resplit mixup cutmix cutmix_minmax mixup_prob mixup_switch_prob mixup_mode finetune model_key "
        "model_prefix init_scale use_mean_pooling use_cls disable_weight_decay_on_rel_pos_bias data_path "
        "eval_data_path nb_classes imagenet_default_mean_and_std data_set output_dir log_dir device seed "
        f"{_RESUMING} save_ckpt no_save_ckpt eval dist_eval {_LAUNCHED} enable_deepspeed",
    ),
    "Linear probe": (
        FinetuneConfig,
        f"avgpool_patchtokens {_SHAPE} patch_size optimizer pretrained_weights checkpoint_key epochs lr base_lr "
        "batch_size_per_gpu dist_url local_rank data_path num_workers val_freq output_dir num_labels dist_on_itp "
        "imagenet_default_mean_and_std amp_forward",
    ),
    "Segmentation": (
        SegmentationConfig,
        "work-dir load-from resume-from no-validate gpus gpu-ids seed deterministic options launcher local_rank "
        "aug-test out format-only eval show show-dir gpu-collect tmpdir eval-options",
    ),
}
LESS = {
    "pretrain": "--set train.steps=2 --set train.global_batch_size=4 --set model.depth=2 --set model.embed_dim=24 "
    "--set model.num_heads=2 --set optimizer.warmup_steps=0",
    "classification": "--set train.steps=2 --set train.global_batch_size=4 --set train.micro_batch_size=4 "
    "--set model.depth=2 --set model.embed_dim=24 --set model.num_heads=2 --set optimizer.warmup_steps=0",
    "segmentation": "--set train.steps=2 --set train.global_batch_size=2 --set model.depth=2 --set model.embed_dim=24 "
    "--set model.num_heads=2 --set optimizer.warmup_steps=0 --set image.img_size=64 --set head.blocks=[0,0,1,1] "
    "--set augment.short_side=64 --set evaluation.short_side=64 --set evaluation.stride=48 --set head.norm=group",
}


def rows_of(section):
    """Return the rows of a section's table of options, as lists of cells."""
    text = re.search(rf"^## {re.escape(section)}.*?(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("section", OFFICIAL)
def test_every_official_option_is_in_its_table_once(section):
    found = [option for row in rows_of(section) for option in re.findall(r"^`--([\w-]+)`$", row[0])]
    assert sorted(found) == sorted(OFFICIAL[section][1].split())


@pytest.mark.parametrize("section", OFFICIAL)
def test_settings_exist_and_have_these_defaults(section):
    schema = OFFICIAL[section][0]
    defaults = flatten(config_to_dict(schema()))
    compared = 0
    for option, _there, here, default, _remark in rows_of(section):
        name = re.fullmatch(r"`([a-z_]+(?:\.[a-z_0-9]+)*)`", here)
        if name is None:
            assert here == "none" or here.startswith(
                ("`beit ", "`--", "leave out", "RUN", "DATA", "SOURCE", "MODEL")
            ), here
            continue
        if name[1] == "beit import" or name[1] not in _all_keys(schema):
            raise AssertionError(f"{option}: {name[1]} is no setting")
        told = None if default == "-" else tomllib.loads(f"value = {default}")["value"]
        real = defaults.get(name[1])
        assert told == (list(real) if isinstance(real, tuple) else real), (option, name[1], real)
        compared += 1
    assert compared >= 3


def test_settings_of_its_sentences_and_recipes_exist():
    known = {key for schema in (PretrainConfig, FinetuneConfig, SegmentationConfig, TokenizeConfig)
             for key in _all_keys(schema)}  # fmt: skip
    sections = {key.partition(".")[0] for key in known if "." in key}
    official = {row[0] for section in OFFICIAL for row in rows_of(section)}
    for cell, name in re.findall(r"(`([a-z_]+\.[a-z_]+)(?:=[^`]*)?`)", PAGE):
        if name.partition(".")[0] in sections and cell not in official and not name.endswith(".pth"):
            assert name in known, name
    shipped = {
        path.stem for place in (PRETRAIN_RECIPES, RECIPES, SEGMENTATION_RECIPES) for path in place.glob("*.toml")
    }
    named = set(re.findall(r"`(beit_[a-z0-9_]+)`", PAGE))
    assert len(named) >= 10 and named <= shipped


def write_released(path):
    """Write weights of a self-supervised BEiT, as the released files hold them: tiny, at 224 px."""
    torch.manual_seed(0)
    shape = ViTConfig(embed_dim=24, depth=2, num_heads=2)
    torch.save({"model": MaskedImageModel(shape, vocab_size=16, num_masked=75).state_dict()}, path)


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_commands_run_in_order(tmp_path, monkeypatch):
    write_images(tmp_path / "imagenet/train", 12, size=64, classes=("rose", "tulip"))
    write_images(tmp_path / "imagenet/val", 6, size=64, classes=("rose", "tulip"))
    write_released(tmp_path / "beit_base_patch16_224_pt22k.pth")
    write_scenes(tmp_path / "ade/train", 4)
    write_scenes(tmp_path / "ade/val", 2, start=50)
    for part, name in (("train", "training"), ("val", "validation")):
        for kind in ("images", "annotations"):
            target = tmp_path / "ADEChallengeData2016" / kind / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "ade" / part / kind).rename(target)
    use_small_network(monkeypatch)
    from beit.common.tokenizers.dalle import DalleEncoder

    write_pickle(DalleEncoder(), tmp_path / "dall_e_tokenizer_weight/encoder.pkl")
    monkeypatch.chdir(tmp_path)
    for command in shown_commands(PAGE):
        words = command.split()[1:]
        if words[0] in ("tokenizer", "tokenize"):  # in this process, where DALL-E's network is small
            monkeypatch.setattr(sys, "argv", ["beit", *words])
            assert cli._run()[0] == 0, command
            continue
        less = LESS.get(words[1] if words[0] == "finetune" else words[0], "")
        less += " --set reader.num_workers=0" if words[0] in ("pretrain", "finetune") else ""
        run_commands([command], tmp_path, lambda words, less=less: less + " --gpus 1" * ("--gpus" in words))
    assert (tmp_path / "exported/base/model.pth").is_file()

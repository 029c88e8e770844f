"""Every command on training and judging a tokenizer runs, in order, on small data under the names it uses."""

import re
from pathlib import Path

import pytest

from beit.common.tokenizer import load_tokenizer
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.support import write_images

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "tokenizers.md").read_text()
pytestmark = [pytest.mark.docs, pytest.mark.timeout(1800)]

# Appended to the shown commands: the same code, less of it.
LESS = (
    "--set model.vocab_size=16 --set model.width=16 --set model.num_blocks=1 --set data.crop_size=16 "
    "--set data.num_eval_images=4 --set train.steps=4 --set train.global_batch_size=4 --set optimizer.warmup_steps=0 "
    "--set reader.num_workers=1"
)


def section(title):
    start = TEXT.index(f"\n## {title}\n")
    return TEXT[start : TEXT.find("\n## ", start + 1)]


TRAIN, REPORT = section("A dVAE of your own"), TEXT[TEXT.index("\n## Which tokenizer to trust\n") :]


# The same for words of a teacher, by kind.
TINY_VIT = "--set model.embed_dim=16 --set model.depth=2 --set model.num_heads=2"
LESS_OF = {
    "pretrain": f"{TINY_VIT} --set train.steps=4 --set train.global_batch_size=4 --set optimizer.warmup_steps=1",
    "kmeans": "--set model.vocab_size=16 --set clustering.steps=2 --set clustering.painting_steps=1 "
    "--set clustering.global_batch_size=8 --set clustering.micro_batch_size=8",
    "vqkd": f"{TINY_VIT} --set model.vocab_size=16 --set train.steps=4 --set train.global_batch_size=4 "
    "--set optimizer.warmup_steps=1",
}


def less_of_words(words):
    if words[:2] == ["tokenizer", "train"]:
        return LESS_OF["kmeans" if "kmeans" in words else "vqkd"] + " --set reader.num_workers=0"
    if words[0] == "pretrain":
        return LESS_OF["pretrain"] + " --set reader.num_workers=0"
    return ""


def test_words_from_an_encoder_of_ones_own(tmp_path):
    write_images(tmp_path / "photos", 40, size=64)
    commands = list(shown_commands(section("Which words when")))
    assert len(commands) == 7
    run_commands(commands, tmp_path, less_of_words)
    assert (tmp_path / "words.html").is_file() and (tmp_path / "runs/again/encoder").is_dir()
    for name in ("clusters", "distilled"):
        assert load_tokenizer(tmp_path / "tokenizers" / name).img_size == 64


def test_commands_run_in_order(tmp_path):
    for name in ("photos", "xrays"):
        write_images(tmp_path / name, 10, size=64)
    commands = [*shown_commands(TRAIN), *shown_commands(REPORT)]
    assert len(commands) >= 9
    run_commands(commands, tmp_path, lambda words: LESS if words[:2] == ["tokenizer", "train"] else "")
    for page in ("report.html", "report.json", "compare.html"):
        assert (tmp_path / page).is_file()
    for folder in (tmp_path / "tokenizers").iterdir():
        assert load_tokenizer(folder).vocab_size == 16
        assert (folder / "reconstruction.png").is_file()


def test_settings_it_names_exist():
    from beit.common.config import config_to_dict
    from beit.tokenize.tokenizer_training.config import TokenizerTrainConfig

    known = config_to_dict(TokenizerTrainConfig())
    optional = {"train.ema_decay", "train.early_stop_evals"}
    named = set(re.findall(r"\b((?:model|data|train|objective|checkpoint|deepspeed)\.[a-z_]+)", TRAIN))
    assert len(named) > 8
    for setting in named - optional:
        section, key = setting.split(".")
        assert key in known[section], setting

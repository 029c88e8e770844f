"""Every command on words distilled from a teacher runs, in order, on small data under the names it uses."""

import re
from pathlib import Path

import pytest

from beit.common.config import config_to_dict, flatten
from beit.common.tokenizer import load_tokenizer
from beit.tests.distillation import write_encoder
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.support import write_images
from beit.tokenize.distillation.config import DistillationConfig

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "tokenizers.md").read_text()
SECTION = TEXT[TEXT.index("\n## Words distilled from a teacher\n") : TEXT.index("\n## Words by k-means\n")]

# Appended to the shown commands: the same code, less of it.
LESS = {
    "tokenizer train": "--set model.vocab_size=16 --set model.embed_dim=16 --set model.depth=1 --set model.num_heads=2 "
    "--set data.num_eval_images=4 --set data.num_patch_images=4 --set train.steps=2 --set train.global_batch_size=4 "
    "--set optimizer.warmup_steps=0 --set reader.num_workers=0",
    "pretrain store/": "--set model.embed_dim=16 --set model.depth=1 --set model.num_heads=2 --set train.steps=2 "
    "--set train.global_batch_size=4 --set optimizer.warmup_steps=0 --set reader.num_workers=0",
}


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_commands_run_in_order(tmp_path):
    write_images(tmp_path / "photos", 12, size=64)
    write_encoder(tmp_path / "runs/pretrain/encoder", img_size=64, patch_size=8)
    (tmp_path / "colours.py").write_text(re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)[0])
    commands = [*shown_commands(SECTION)]
    assert len(commands) == 5
    run_commands(commands, tmp_path, lambda words: LESS.get(" ".join(words[:2]), ""))
    for name in ("semantic", "second", "colours"):
        assert load_tokenizer(tmp_path / "tokenizers" / name, need_decoder=True).vocab_size == 16


def test_settings_it_names_exist():
    known = flatten(config_to_dict(DistillationConfig()))
    named = set(re.findall(r"`((?:model|data|train|objective|teacher)\.[a-z_]+)", SECTION))
    assert len(named) > 5
    assert named <= {*known, "train.ema_decay", "teacher.fingerprint"}

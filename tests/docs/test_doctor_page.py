"""The commands of docs/doctor.md run on a small store and run, and its tables name every topic that there is."""

import re
import shutil
from pathlib import Path

import pytest

from beit.common.overview.doctor import examine
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.support import write_store

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/doctor.md").read_text()


@pytest.mark.docs
@pytest.mark.timeout(900)
def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write_store(tmp_path / "made", images=12)
    shutil.move(tmp_path / "made/store", tmp_path / "store")
    shutil.move(tmp_path / "made/images", tmp_path / "images")
    shutil.copytree(ROOT / "tests/golden/written_at_365d2fa/pretrain-run", tmp_path / "runs/pretrain")
    commands = list(shown_commands(TEXT))
    assert len(commands) == 2
    printed = run_commands(commands, tmp_path, lambda _: "")
    assert re.search(r"^ok +store ", printed, re.MULTILINE) and re.search(r"^ok +checkpoint ", printed, re.MULTILINE)


def test_every_topic_is_explained():
    explained = set(re.findall(r"`([a-z -]+(?: N)?)`", "\n".join(re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE))))
    topics = {topic for topic, _ in examine._SYSTEM}
    of_children = {"torch", "device", "gpu N", "compiler", "dall-e", "ranks"}
    named = {"store", "run", "checkpoint", "encoder", "model", "last", "tokenizer"}
    assert explained == topics | of_children | named

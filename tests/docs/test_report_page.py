"""The commands of docs/report.md work on runs like those it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.report_runs import TOKENIZER, fine_tuned, pretraining, write_json

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.docs


def test_commands_write_pages_that_hold_what_is_said(tmp_path: Path) -> None:
    pretraining(tmp_path / "runs/pretrain")
    fine_tuned(tmp_path / "runs/flowers", encoder="runs/pretrain/encoder")
    fine_tuned(tmp_path / "runs/flowers-random")
    verdict = {"level": "good", "title": "words", "text": "all are used", "advice": ""}
    document = {"format": "beit-tokenizer-report", "tokenizers": [{"tokenizer": TOKENIZER, "verdicts": [verdict]}]}
    write_json(tmp_path / "fitness.json", document)
    commands = list(shown_commands((ROOT / "docs/report.md").read_text()))
    assert len(commands) == 3
    run_commands(commands, tmp_path, lambda words: "")
    assert "30 steps of 32 images" in (tmp_path / "flowers.html").read_text()
    assert "All are used." in (tmp_path / "pretrain.html").read_text()
    assert "Report on pretrain" in (tmp_path / "runs/pretrain/report.html").read_text()

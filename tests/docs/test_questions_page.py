"""docs/questions.md: its commands run, its index and the places it links to exist, and each answer says who asked."""

import re
from pathlib import Path

import pytest

from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.support import write_images

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "questions.md").read_text()
LESS = {
    "pretrain": "--set train.steps=2 --set train.global_batch_size=8 --set reader.num_workers=0 "
    "--set optimizer.warmup_steps=0",
    "finetune classification": "--set train.steps=2 --set train.global_batch_size=8 --set reader.num_workers=0",
    "finetune linear-probe": "--set reader.num_workers=0",
    "finetune knn": "--set reader.num_workers=0",
    "tokenize": "--views 2",
}
PAGES_OF_THIS_HELP = ("questions.md", "first-hour.md", "migration.md")


def anchors_of(text):
    """Return the anchors that a page's headings get on the web: small letters, no punctuation, dashes for blanks."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES_OF_THIS_HELP)
def test_links_lead_somewhere(page):
    text = (DOCS / page).read_text()
    links = re.findall(r"\]\(((?!https?:)[^)]+)\)", text)
    assert links
    for link in links:
        name, _, anchor = link.partition("#")
        target = (DOCS / name) if name else DOCS / page
        assert target.is_file(), link
        assert not anchor or anchor in anchors_of(target.read_text()), link


def test_the_index_names_every_question_and_answers_say_where_it_was_asked():
    questions = re.findall(r"^### (.+)$", PAGE, flags=re.MULTILINE)
    assert len(questions) >= 20
    named = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert anchors_of("\n".join(f"# {question}" for question in questions)) == named
    answers = re.split(r"^#{2,3} .+$", PAGE, flags=re.MULTILINE)[1:]
    asked = [answer for answer in answers if "https://github.com/" in answer]
    assert len(asked) >= len(questions) - 4
    assert "results.md#" in PAGE


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_commands_run_in_order(tmp_path):
    write_images(tmp_path / "photos", 40, size=64)
    for name in ("train", "val"):
        write_images(tmp_path / "labelled" / name, 16, size=64, classes=("rose", "tulip"))
    commands = list(shown_commands(PAGE))
    assert len(commands) >= 10
    run_commands(commands, tmp_path, lambda words: LESS.get(words[0], LESS.get(" ".join(words[:2]), "")))
    for file in ("report.html", "learning.png", "reconstruction.png", "neighbours.png", "embeddings.parquet"):
        assert (tmp_path / file).stat().st_size > 500

"""A tokenizer of somebody else through the commands: the example of docs/tokenizers.md, as a user would run it."""

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from beit.cli import beit
from beit.common.errors import InputError
from beit.common.store import open_store
from beit.tests.support import write_images

DOCS = Path(__file__).resolve().parents[3] / "docs" / "tokenizers.md"
SMALL = ["--img-size", "32", "--views", "2", "--workers", "1", "--set", "threads=1"]


@pytest.fixture
def example(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(\"\"\"brightness\.py.*?)```", DOCS.read_text(), flags=re.DOTALL)
    (tmp_path / "brightness.py").write_text(code)
    write_images(tmp_path / "photos", 6, size=64)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "brightness", raising=False)
    yield "brightness:Brightness"
    sys.modules.pop("brightness", None)


def run(*words):
    return CliRunner().invoke(beit, [str(word) for word in words], catch_exceptions=False)


def test_the_documented_example_makes_a_store_and_is_audited(example):
    assert run("tokenize", "photos", "store", "--tokenizer", example, *SMALL).exit_code == 0
    store = open_store("store")
    assert (store.info.tokenizer.name, store.info.tokenizer.vocab_size) == (example, 64)
    token_ids = store[0]["token_ids"]
    assert token_ids.shape == (2, 2, 2) and 0 < int(token_ids.max()) < 64
    result = run("verify", "store", "--audit", "4", "--tokenizer", example)
    assert result.exit_code == 0 and "audit: 100.0 %" in result.output


def test_a_tokenizer_of_one_side_is_asked_for_no_other(example):
    fixed = Path("brightness.py").read_text().replace("downsampling = 8\n", "downsampling = 8\n    img_size = 32\n")
    Path("brightness.py").write_text(fixed)
    with pytest.raises(InputError, match=r"takes images of 32 px only and gives 4 x 4 tokens, where .* is 2;"):
        run("tokenize", "photos", "store", "--tokenizer", example, *SMALL)
    assert not Path("store").exists()
    assert run("tokenize", "photos", "store", "--tokenizer", example, *SMALL, "--patch-size", "8").exit_code == 0
    assert open_store("store")[0]["token_ids"].shape == (2, 4, 4)
    with pytest.raises(InputError, match=r"--view-size \(112\) is not 32, the one side that brightness:Brightness"):
        run("tokenizer", "report", example, "photos", "--view-size", "112")
    wide = fixed.replace("Brightness", "Wide").replace("img_size = 32", "img_size = 64")
    Path("brightness.py").write_text(fixed + wide.partition("functional as F")[2])
    del sys.modules["brightness"]
    with pytest.raises(InputError, match=r"4 x 4 words of 32 px and brightness:Wide for 8 x 8 of 64 px"):
        run("tokenizer", "compare", example, "brightness:Wide", "photos")


def test_a_store_does_not_decide_what_is_imported(example):
    run("tokenize", "photos", "store", "--tokenizer", example, *SMALL)
    del sys.modules["brightness"]
    with pytest.raises(InputError, match=f"name it yourself: --tokenizer {example}"):
        run("verify", "store", "--audit", "4")
    assert "brightness" not in sys.modules


def test_a_recipe_does_not_decide_what_is_imported(example):
    Path("recipe.toml").write_text(f'tokenizer = "{example}"\n')
    with pytest.raises(InputError, match=f"the recipe names tokenizer {example}.*name it yourself"):
        run("tokenize", "photos", "store", "--recipe", "recipe.toml", *SMALL)
    assert "brightness" not in sys.modules and not Path("store").exists()
    assert run("tokenize", "photos", "store", "--recipe", "recipe.toml", "--tokenizer", example, *SMALL).exit_code == 0


def test_a_wrong_word_is_one_line_before_anything_is_made(example):
    """Images were packed first, which may take hours."""
    source = Path("brightness.py").read_text()
    Path("brightness.py").write_text(source.replace("vocab_size).long()", "vocab_size).long() + 64"))
    with pytest.raises(InputError, match=r"encode returned ids \d+ to \d+, must lie in \[0, 64\)"):
        run("tokenize", "photos", "store", "--tokenizer", example, *SMALL)
    assert not Path("store").exists()


def test_an_import_error_leaves_no_store(example):
    with pytest.raises(InputError, match="No module named 'darkness'"):
        run("tokenize", "photos", "store", "--tokenizer", "darkness:Brightness", *SMALL)
    assert not Path("store").exists()

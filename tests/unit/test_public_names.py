"""What `beit` offers by name: found without being imported, and described by examples that run."""

import doctest
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beit
from beit.tests.workplace import write_workplace

NAMES = sorted(set(beit.__all__) - {"__version__"})
DOORS = ("common.encoder", "common.store", "common.tokenizer", "common.views", "common.vit.features",
         "common.vit.transform", "common.vit.vit", "finetune.prediction.classifier", "finetune.prediction.loading",
         "finetune.prediction.segmenter")  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return write_workplace(tmp_path_factory.mktemp("examples"))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_what_its_module_has(name):
    assert getattr(beit, name) is getattr(import_module(beit._HOMES[name]), name)
    assert name in dir(beit)


@pytest.mark.parametrize("name", NAMES)
def test_help_states_shapes_and_shows_an_example(name):
    text = getattr(beit, name).__doc__
    assert [part for part in ("Args:", "Returns:", "Example:") if part not in text] == []
    assert ">>> " in text
    assert any(dtype in text for dtype in ("float32", "uint8", "dtype"))
    assert re.search(r"\((?:B|K|img_size), ", text), "the shape of a tensor or an array"
    for parameter in inspect.signature(getattr(beit, name)).parameters:
        assert re.search(rf"^ +{parameter}: ", text, re.MULTILINE), f"what {parameter} is"


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"pool_features"}))  # which has to do with no place
def test_help_says_what_is_counted_in_pixels(name):
    assert re.search(r"\b(pixels?|px)\b", getattr(beit, name).__doc__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'beit' has no attribute 'load_encodr'"):
        beit.load_encodr  # noqa: B018
    with pytest.raises(ImportError, match="load_encodr"):
        exec("from beit import load_encodr")


def test_opening_a_store_and_rendering_wait_for_no_torch():
    code = "import sys, beit; beit.open_store, beit.render_view; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


@pytest.mark.parametrize("module", DOORS)
def test_examples_run(module, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {"beit": beit, "torch": torch, "np": np, "Image": Image}
    examples = [test for test in finder.find(import_module(f"beit.{module}"), globs=names) if test.examples]
    assert examples
    for test in examples:
        printed = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
        assert not result.failed, "".join(printed)


@pytest.mark.slow
def test_type_checkers_see_the_names(tmp_path):
    (tmp_path / "beit").symlink_to(Path(beit.__file__).parent)
    (tmp_path / "user.py").write_text(
        "import beit\n"
        "reveal_type(beit.load_model('runs/flowers').predict('photo.jpg').label)\n"
        "reveal_type(beit.load_encoder('runs/pretrain').transform)\n"
        "beit.load_encodr\n"
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", "user.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert 'Revealed type is "str"' in said and "ImageTransform" in said
    assert 'user.py:4: error: Module has no attribute "load_encodr"' in said

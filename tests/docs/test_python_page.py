"""The code of docs/python.md runs as one script, and gives the shapes that the page says."""

import re
from pathlib import Path

import pytest
import torch

import beit
from beit.tests.workplace import write_workplace

PAGE = (Path(__file__).resolve().parents[2] / "docs/python.md").read_text()
SCRIPT = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE))
pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run the page and return its variables."""
    folder, variables = write_workplace(tmp_path_factory.mktemp("python page")), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(SCRIPT, "python.md", "exec"), variables)
    return variables | {"folder": folder}


def test_shapes_are_those_it_names(page):
    assert page["hidden"].shape == (2, 17, 24)
    assert page["vectors"].shape == (2, 24)
    assert page["maps"].shape == (2, 24, 4, 4)
    assert [(patches.shape, cls.shape) for patches, cls in page["layers"]] == [((2, 24, 4, 4), (2, 24))] * 2
    assert page["logits"].shape == page["probabilities"].shape == (2, 2)
    assert page["features"].dtype == torch.bfloat16
    assert page["token_ids"].shape == (1, 28, 28) and page["painted"].shape == (1, 224, 224, 3)
    assert len(page["several"]) == 2


def test_every_public_name_is_in_its_table():
    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `beit."))
    assert set(re.findall(r"`beit\.(\w+)`", rows)) == set(beit.__all__) - {"__version__"}

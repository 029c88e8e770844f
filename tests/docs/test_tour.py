"""The notebook docs/tour.ipynb runs from first cell to last, draws what it says, and lies here without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import beit

FILE = Path(__file__).resolve().parents[2] / "docs/tour.ipynb"


def read_notebook():
    return nbformat.read(FILE, as_version=4)


def test_outputs_are_cleared():
    for cell in read_notebook().cells:
        assert not cell.get("outputs") and not cell.get("execution_count"), "clear all outputs before you commit"
        assert not cell.metadata, f"{cell.id} carries metadata of an editor"


def test_it_calls_the_four_functions_of_the_doors():
    source = "\n".join(cell.source for cell in read_notebook().cells if cell.cell_type == "code")
    for name in ("open_store", "render_view", "load_tokenizer", "load_encoder"):
        assert f"beit.{name}(" in source and name in beit.__all__


@pytest.mark.docs
def test_it_runs_and_draws(tmp_path, monkeypatch):
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))  # nothing of it in anybody's home
    notebook = read_notebook()
    # The kernel of this interpreter, wherever another one may be installed.
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    pictures = [cell for cell in code if cell.source.endswith("plt.show()")]
    assert len(pictures) == 8
    for cell in pictures:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    printed = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "50 likeliest" in printed and "verdict: held-out" in printed

"""The notebooks of docs/notebooks: without outputs in git, and each runs from its first cell to its last."""

from __future__ import annotations

import json

import pytest

from tests.fixtures.golden_files import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


@notebook
def test_outputs_stay_out_of_git(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    assert any(cell["cell_type"] == "code" for cell in cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, f"{path.name}: clear its outputs"


@pytest.mark.notebooks
@notebook
def test_it_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    held = nbformat.read(path, as_version=4)
    NotebookClient(held, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = [out for cell in held.cells if cell.cell_type == "code" for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in shown) or path.stem == "a_method_of_your_own"
    assert not [out for out in shown if out.output_type == "error"]

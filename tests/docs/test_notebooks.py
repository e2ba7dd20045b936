"""The notebooks of docs/ hold no outputs, and run from top to bottom."""

import json

import pages
import pytest

NOTEBOOKS = sorted((pages.ROOT / "docs" / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.mark.quick
@each
def test_a_notebook_holds_no_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.full
@each
def test_a_notebook_runs_and_its_output_is_short(path, tmp_path):
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    made = client.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": tmp_path}})
    made.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [o for o in outputs if o.output_type == "error"] == []
    written = "".join(o.get("text", "") for o in outputs)
    assert len(written.splitlines()) < 60  # the certificate has most of them
    shown = [html for o in outputs if (html := o.get("data", {}).get("text/html"))]
    assert any("Records" in html and "data:image/png" in html for html in shown)
    assert sum("<progress" in html for html in shown) <= 2  # one line for each run

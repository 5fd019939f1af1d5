"""`launch/colab.ipynb` from top to bottom, with a small model and images from folders instead of downloads."""

import json
import os
import zipfile

import nbclient
import nbformat
import pytest

from tests.docs import place
from tests.docs.blocks import ROOT

SMALL = """
WEIGHTS, IMAGES, LABELLED = "timm:vit_tiny_patch16_224.safetensors", "PHOTOS", "LABELLED"
BUDGET, STEPS = 0.7, 2
FIELDS = {"plan.method": "uniform_ratio", "plan.multiple": 2, "log_every": 1, "export.platforms": ("cpu",)}
"""


def output(cell):
    """What a cell printed, and showed as text."""
    return "".join(one.get("text") or str(one.get("data", {})) for one in cell.outputs)


@pytest.mark.filterwarnings("default")  # jupyter_client leaves sockets to the garbage collector.
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    place.make(tmp_path)
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "launch" / "colab.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    (index,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(SMALL))
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=dict(os.environ))
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "low_rank", "int8"]
    assert rows[2]["size_mb"] < rows[1]["size_mb"] < rows[0]["size_mb"]
    assert (tmp_path / "run" / "export" / "int8.onnx").exists()
    said = [output(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert any("<iframe" in text for text in said)
    assert sum(text.count("%  ") for text in said) == 5  # classes of a photo
    assert "report.html" in zipfile.ZipFile(tmp_path / "run.zip").namelist()

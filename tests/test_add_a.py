"""What CONTRIBUTING.md says of adding something: its examples, as they stand there, in a copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, copy_house

BIN = Path(sys.executable).parent
KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}


def examples() -> dict[str, str]:
    """The first Python block under each heading "Add a ..."."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = {}
    for part in re.split(r"^### Add an? ", text, flags=re.M)[1:]:
        block = re.search(r"^```python\n(.*?)^```", part, re.M | re.S)
        if block:
            found[part.splitlines()[0]] = block[1]
    return found


def write_notebook(path: Path, code: str, promise: str) -> None:
    """Write an example as the notebook that it stands for: a cell begins at each line `#| ...`."""

    def cell(number: int, kind: str, source: str) -> dict:
        code = {"execution_count": None, "outputs": []} if kind == "code" else {}
        source = source.strip("\n").splitlines(keepends=True)
        return {"cell_type": kind, "id": f"{number:08}", "metadata": {}, "source": source} | code

    parts = re.split(r"^(?=#\| )", code, flags=re.M)
    cells = [cell(0, "markdown", f"# An example\n\n> {promise}")]
    for number, part in enumerate(filter(None, parts), 1):
        if part.startswith("#| markdown"):
            cells.append(cell(number, "markdown", part.split("\n", 1)[1]))
        else:
            place = 0 if "default_exp" in part else len(cells)
            cells.insert(place, cell(number, "code", part))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"cells": cells, "metadata": KERNEL, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def run(house: Path, *command: object) -> subprocess.CompletedProcess:
    """Run a command with the package of the copy."""
    env = os.environ | {"PYTHONPATH": str(house)}
    command = [str(part) for part in command]
    return subprocess.run(command, capture_output=True, text=True, cwd=house, env=env)


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the repository with the notebooks of all examples, exported."""
    copy, code = copy_house(tmp_path_factory.mktemp("added")), examples()
    for what, name, promise in [
        ("format", "data/formats/90_grid", "Numbers in a text file."),
        ("architecture", "models/additions/90_plain", "A network of two convolutions."),
        ("loss", "models/additions/91_absolute", "The absolute error."),
        ("task", "run/tasks/90_brightness", "Count bright pixels."),
        ("command", "run/commands/90_hello", "`cellseg hello`: a greeting."),
        ("lesson", "lessons/90_bright", "How many pixels are bright?"),
        ("app", "apps/bright", "Bright pixels, with a slider."),
    ]:
        write_notebook(copy / "nbs" / f"{name}.ipynb", code[what], promise)
    done = run(copy, BIN / "nbdev_export")
    assert done.returncode == 0, done.stderr
    return copy


def cellseg(house: Path, *arguments: str) -> subprocess.CompletedProcess:
    code = "from cellseg_nb.run.cli import main; main()"
    return run(house, sys.executable, "-c", code, *arguments)


def test_format(house, tmp_path):
    import numpy as np

    pixels = np.zeros((60, 80), np.uint16)
    pixels[10:25, 10:30] = pixels[35:50, 45:70] = 900
    (tmp_path / "in").mkdir()
    np.savetxt(tmp_path / "in" / "a.grid", pixels, fmt="%d")
    command = ("segment", str(tmp_path / "in"), "--model", "otsu", "--out", str(tmp_path / "out"))
    done = cellseg(house, *command)
    assert done.returncode == 0 and "2 " in done.stdout, done.stderr
    code = f"""
from cellseg_nb.data.io import open_plane, read_labels, write_labels
labels = read_labels({str(tmp_path / "out" / "a_labels.tif")!r})
path = write_labels({str(tmp_path / "truth" / "a.grid")!r}, labels)
part = open_plane(path).read(12, 14, 8, 12)
print(labels.max(), (part == labels[12:14, 8:12]).all(), (read_labels(path) == labels).all())
"""
    (tmp_path / "truth").mkdir()
    done = run(house, sys.executable, "-c", code)
    assert done.stdout == "2 True True\n", done.stderr


def test_task(house, tmp_path):
    import numpy as np

    from cellseg_nb.data.io import write_image

    write_image(tmp_path / "in" / "a.tif", np.full((4, 6), 60, np.uint8), "YX")
    command = ("brightness", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert "0 bright pixels in 1 image" in cellseg(house, *command).stdout
    done = cellseg(house, *command, "--threshold", "50")
    assert "24 bright pixels in 1 image" in done.stdout, done.stderr
    assert "  brightness   Count bright pixels.\n" in cellseg(house, "--help").stdout
    assert (tmp_path / "out" / "report.html").is_file()
    wrong = cellseg(house, *command, "--threshold", "-1")
    assert wrong.returncode == 2 and "--threshold: Input should be greater" in wrong.stderr


def test_command(house):
    assert cellseg(house, "hello", "Ada").stdout == "Hello, Ada!\n"
    assert cellseg(house, "hello", "Ada", "--loud").stdout == "HELLO, ADA!\n"
    wrong = cellseg(house, "hello", "R2D2")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: a name has letters only, unlike 'R2D2'\n"
    assert "  hello        Greet somebody.\n" in cellseg(house, "--help").stdout


def test_architecture(house):
    code = """
import torch
from cellseg_nb.models.bundle import NetworkSettings
from cellseg_nb.models.zoo import build_network
settings = NetworkSettings(architecture="Plain")
network = build_network(**settings.model_dump(), out_channels=2)
print(tuple(network(torch.zeros(1, 1, 32, 48)).shape))
try:
    build_network("Plane")
except ValueError as error:
    print(error)
"""
    done = run(house, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(1, 2, 32, 48)\nunknown architecture 'Plane'; known: Unet, ")
    assert "UNet3D, Plain" in done.stdout


def test_loss(house):
    code = """
import torch
from cellseg_nb.models.losses import HeatmapLoss
ones, zeros = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
print(*[HeatmapLoss(kind)(3 * ones, zeros).item() for kind in ("absolute", "absolute+mse")])
"""
    done = run(house, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3.0 12.0\n"


def test_lesson(house):
    page = house / "nbs" / "lessons" / "90_bright.ipynb"
    done = run(house, BIN / "nbdev_test", "--path", page, "--n_workers", "1")
    assert "Success" in done.stdout + done.stderr, done.stdout + done.stderr
    page.write_text(page.read_text(encoding="utf-8").replace("image > threshold", "image < threshold"))
    done = run(house, BIN / "nbdev_test", "--path", page, "--n_workers", "1")
    assert "AssertionError" in done.stdout + done.stderr


def test_app(house):
    page = house / "nbs" / "apps" / "bright.ipynb"
    done = run(house, BIN / "nbdev_test", "--path", page, "--n_workers", "1")
    assert "Success" in done.stdout + done.stderr, done.stdout + done.stderr
    shutil.copy(ROOT / "Makefile", house)
    shown = run(house, "make", "-n", "app-bright").stdout
    assert "voila nbs/apps/bright.ipynb" in shown and "{'name': 'An example'}" in shown
    assert "make app-bright        the app “An example”" in run(house, "make", "help").stdout


def test_the_copy_is_used(house):
    done = run(house, sys.executable, "-c", "import cellseg_nb; print(cellseg_nb.__file__)")
    assert Path(done.stdout.strip()).parent.parent == house

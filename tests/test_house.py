"""The house: packaging, notebooks and modules in step, light imports, versions that fit."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, notebook_id, notebooks, read_cells
from modules import (
    ROOMS,
    import_cycles,
    import_graph,
    imported,
    line_count,
    modules,
    room_of,
    undefined_names,
)
from packaging.requirements import Requirement

BIN = Path(sys.executable).parent
HEAVY = "torch fastai tensorflow monai pandas numba skimage matplotlib kedro".split()
HANDWRITTEN = {"__init__.py", "_modidx.py", "_docs_render.py"}
SHOW_HELP = """
from typer.testing import CliRunner
from cellseg_nb.run.cli import app
result = CliRunner().invoke(app, ["--help"])
assert result.exit_code == 0 and "segment" in result.output, result.output
"""


def settings() -> dict:
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def requirements(*keys: str) -> dict[str, Requirement]:
    listed = [Requirement(item) for key in keys for item in settings()[key].split()]
    return {item.name.lower(): item for item in listed}


def run_python(code: str) -> str:
    """Run code in a new Python and give what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# Light imports


@pytest.mark.parametrize(
    "code",
    [
        "import cellseg_nb",
        "import cellseg_nb.core",
        "import cellseg_nb.settings",
        "import cellseg_nb.data.io",
        "import cellseg_nb.data.catalog",
        "import cellseg_nb.run.cli",
        SHOW_HELP,
    ],
    ids=["package", "core", "settings", "data.io", "data.catalog", "run.cli", "cellseg --help"],
)
def test_import_loads_nothing_heavy(code):
    loaded = run_python(f"{code}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip().splitlines()[-1] == "[]", f"loaded: {loaded}"


# Versions that break without a word when they do not fit


def test_nbdev_runs():
    done = subprocess.run([BIN / "nbdev_help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "nbdev_export" in done.stdout


def test_fastai_fits_one_batch():
    import torch
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner

    x = torch.linspace(-1, 1, 8)[:, None]
    batches = DataLoader(list(zip(x, 2 * x, strict=True)), bs=8, num_workers=0)
    data = DataLoaders(batches, batches, device="cpu")
    learner = Learner(data, torch.nn.Linear(1, 1), loss_func=torch.nn.MSELoss())
    with learner.no_logging():
        learner.fit(1, lr=0.1)
    assert len(learner.recorder.losses) == 1


# Notebooks and modules


def contents(root: Path) -> dict[str, bytes]:
    paths = [*notebooks(root), *(root / "cellseg_nb").rglob("*.py")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_notebooks_are_clean_and_modules_in_step(house):
    for command in ("nbdev_export", "nbdev_clean"):
        done = subprocess.run([BIN / command], capture_output=True, text=True, cwd=house)
        assert done.returncode == 0, done.stderr
    before, after = contents(ROOT), contents(house)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, f"run `make format` and commit what it changes: {changed}"


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "layout"])
def test_ruff_has_nothing_to_say(command):
    done = subprocess.run([BIN / "ruff", *command, "--quiet"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"run `make format`: {done.stdout}{done.stderr}"


def exported_module(path: Path) -> str | None:
    names = [directive for cell in read_cells(path) for directive in cell.directives]
    names = [name.split()[1] for name in names if name.startswith("default_exp")]
    return names[0] if names else None


def test_every_module_has_its_notebook():
    modules = set()
    for path in notebooks():
        module = exported_module(path)
        if module is not None:
            name = re.sub(r"^\d+_", "", notebook_id(path)[: -len(".ipynb")].split("/")[-1])
            folders = path.parent.relative_to(ROOT / "nbs").parts
            expected = ".".join([*folders, name])
            assert module == expected, f"{path} exports {module}"
            modules.add(f"{module.replace('.', '/')}.py")
    library = ROOT / "cellseg_nb"
    written = {path.relative_to(library).as_posix() for path in library.rglob("*.py") if path.name not in HANDWRITTEN}
    assert written == modules


def test_a_module_has_one_notebook():
    found = Counter(filter(None, map(exported_module, notebooks())))
    assert not (twice := [name for name, times in found.items() if times > 1]), twice


def test_imports_are_seen_wherever_they_stand():
    tree = ast.parse(
        "from ..data.io import read_image\n"
        "def later():\n"
        "    import cellseg_nb.run.cli as cli\n"
        "    from cellseg_nb import apps\n"
        "    return import_module('cellseg_nb.train.learner')\n"
    )
    assert imported(tree, "cellseg_nb.run.tasks") == {
        "cellseg_nb.run.data.io.read_image",
        "cellseg_nb.run.cli",
        "cellseg_nb.apps",
        "cellseg_nb.train.learner",
    }


def test_cycles_are_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert import_cycles(graph) == [["b", "c"]]


def test_missing_imports_are_seen():
    text = (
        "import json\nclass A:\n    b = json\n    def c(self):\n        return [d for d in self.b] + e\nf(g=__name__)\n"
    )
    assert undefined_names(text) == {"e", "f"}


def test_every_name_is_defined():
    """A merge, or an edited cell of imports, may lose one that only a rare case asks for."""
    found = {path.name: undefined_names(path.read_text(encoding="utf-8")) for path in modules(ROOT).values()}
    assert not (lost := {name: names for name, names in found.items() if names}), lost


def test_imports_are_absolute():
    """nbdev makes imports of one line relative, and leaves those in brackets over several lines."""
    relative = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "cellseg_nb").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative, f"write `from cellseg_nb.x import (` and the names below it: {relative}"


def test_rooms_import_only_from_rooms_above():
    """At the top of a module or inside a function, in a folder of a room or right in it."""
    wrong = [
        f"{module} imports {other}"
        for module, others in import_graph(ROOT).items()
        for other in sorted(others)
        if {room_of(module), room_of(other)} <= set(ROOMS)
        and ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    ]
    assert not wrong, wrong


def test_imports_do_not_go_in_circles():
    assert not (cycles := import_cycles(import_graph(ROOT))), cycles


def test_modules_are_short():
    long = {name: line_count(path) for name, path in modules(ROOT).items() if line_count(path) > 700}
    assert not long, f"more than 700 lines; split off a subject: {long}"


def test_notebook_is_small_and_speaks_of_no_machine(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert len(text.encode()) <= 2**20, "larger than 1 MB: save smaller pictures"
    assert str(ROOT) not in text, f"a path of this machine is saved in the notebook: {ROOT}"


def test_pictures_of_real_cells_are_not_stored(notebook):
    for cell in read_cells(notebook):
        if cell.text.startswith("# Shown live only"):
            assert not cell.data["outputs"], f"run `make format`: {cell.text[:80]}"


def test_notebook_opens_with_its_kernel(notebook):
    """Without a kernel named in the notebook, JupyterLab asks for one each time."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]
    assert found.get("kernelspec", {}).get("name") == "python3"
    assert set(found) <= {"kernelspec", "widgets"}


def test_exported_cells_are_short(notebook):
    for cell in read_cells(notebook):
        if cell.has("export", "exporti", "exports"):
            lines = cell.text.count("\n") + 1
            assert lines <= 50, f"{lines} lines, 50 is the end:\n{cell.text[:300]} ..."


def test_readme_is_the_landing_page():
    from cellseg_nb._docs_render import readme_text

    text = readme_text(ROOT / "nbs" / "index.ipynb", settings()["git_url"], settings()["branch"])
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run `make format`"


# Packaging


def test_installed_metadata_is_that_of_settings():
    installed = metadata.metadata("cellseg_nb")
    assert installed["Version"] == settings()["version"]
    assert installed["Summary"] == settings()["description"]
    assert installed["Requires-Python"] == f">={settings()['min_python']}"
    listed = [Requirement(item) for item in installed.get_all("Requires-Dist")]
    needed = {item.name.lower(): item.specifier for item in listed if item.marker is None}
    assert needed == {name: item.specifier for name, item in requirements("requirements").items()}
    assert set(installed.get_all("Provides-Extra")) == {
        "dev",
        "monai",
        "tensorflow",
        "nd2",
        "czi",
        "slides",
        "encoders",
        "pipelines",
        "service",
        "s3",
        "dvc",
        "cluster",
        "exchange",
        "fast",
        "int8",
        "viz",
    }
    scripts = {entry.name for entry in metadata.entry_points(group="console_scripts", module="cellseg_nb.run.cli")}
    assert scripts == {"cellseg"}
    assert any(entry.name == "cellseg_nb" for entry in metadata.entry_points(group="nbdev"))


def test_wheel_holds_every_file_of_the_package(house):
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=house)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (house / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path.relative_to(house).as_posix() for path in (house / "cellseg_nb").rglob("*") if path.is_file()}
    assert packed == {name for name in files if "__pycache__" not in name}


def test_environment_pins_every_direct_requirement():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (listed,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    pins = dict(item.lower().split("==") for item in listed if "==" in item)
    needed = requirements("requirements", "dev_requirements", "tensorflow_requirements")
    assert set(pins) == set(needed)
    outside = [f"{name}=={pins[name]}" for name in needed if pins[name] not in needed[name].specifier]
    assert not outside, f"outside the bounds of settings.ini: {outside}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "target",
    [
        "demo",
        "test",
        "lessons",
        "lab",
        "app-segment",
        "app-cells3d",
        "app-stars",
        "app-points",
        "app-slide",
        "app-grid",
        "format",
        "docs",
        "bench",
    ],
)
def test_make_knows_its_commands(target):
    done = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT).stdout
    assert f"make {target} " in listed


# Tests that need the data sets


@pytest.mark.parametrize(
    "folder, outcome",
    [(None, "3 skipped"), ("there", "1 failed, 2 passed"), ("missing", "3 errors")],
)
def test_data_tests_are_skipped_only_without_data(tmp_path, folder, outcome):
    (tmp_path / "there" / "dsb2018").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_example.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.needs_data('dsb2018')\n"
        "@pytest.mark.parametrize('number', [1, 2])\n"
        "def test_reads(number): pass\n"
        "def test_gives_up(): pytest.skip('no reason')\n"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("CELLSEG_")}
    if folder is not None:
        variables["CELLSEG_DATA"] = str(tmp_path / folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables)
    assert outcome in done.stdout, done.stdout

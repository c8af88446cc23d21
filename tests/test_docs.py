"""The documentation as far as it is made without Quarto: pages, sidebar, links, tables, widgets."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, copy_house, notebook_id, notebooks, read_cells

SITE = "https://cellseg-nb.github.io/cellseg_nb/"
LINK = re.compile(r"\]\(([^)\s]+)\)")
LINKED_SLIDERS = {
    "a": {"model_name": "IntSliderModel", "state": {"value": 3}},
    "b": {"model_name": "IntProgressModel", "state": {"value": 3}},
    "c": {
        "model_name": "LinkModel",
        "state": {"source": ["IPY_MODEL_a", "value"], "target": ["IPY_MODEL_b", "value"]},
    },
}


def prepare_pages(house: Path) -> Path:
    """Run nbdev's notebook processing on a copy of the repository."""
    command = [sys.executable, "-m", "cellseg_nb._docs_render", "--pages"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=house)
    assert done.returncode == 0, done.stderr[-1500:]
    return house / "_proc"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    return prepare_pages(copy_house(tmp_path_factory.mktemp("pages")))


def page_text(page: Path) -> str:
    """All text of a page: its Markdown, its code and the Markdown that its cells show."""
    parts = []
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        parts.append("".join(cell["source"]))
        for output in cell.get("outputs", []):
            parts.append("".join(output.get("data", {}).get("text/markdown", "")))
    return "\n\n".join(parts)


def page_address(path: Path, nbs: Path) -> str:
    """Where nbdev puts the page of a notebook: its name without the number."""
    relative = path.relative_to(nbs)
    return relative.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", relative.name)).with_suffix(".html").as_posix()


def site_settings() -> dict:
    return yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))


def test_every_notebook_becomes_a_page(pages):
    made = {path.relative_to(pages).as_posix() for path in pages.rglob("*.ipynb")}
    assert made == {notebook_id(path) for path in notebooks()}
    assert {"_quarto.yml", "nbdev.yml", "styles.css", "site.scss"} <= {path.name for path in pages.iterdir()}
    stub = yaml.safe_load((pages / "_quarto.yml").read_text(encoding="utf-8"))
    for name in stub["metadata-files"]:
        assert (pages / name).resolve().is_file(), name


def test_page_shows_parameters_errors_and_source(pages):
    text = page_text(pages / "00_core.ipynb")
    assert "### check_labels" in text
    assert "| labels | ndarray |  | label image; integer; (Y, X) or (Z, Y, X); 0 = background |" in text
    assert "**Raises**\n\n- `ValueError`: The array is not integer, not 2D or 3D, or has negative ids." in text
    assert re.search(r"\[source\]\(https://[^)]*/blob/main/cellseg_nb/core.py#L\d+\)", text)
    assert "| pixel_size_um | float \\| tuple[float, ...] \\| None |" in text


def test_page_keeps_its_introduction(pages):
    text = page_text(pages / "00_core.ipynb")
    assert "A *label image* gives every pixel the number of the object it belongs to" in text
    assert text.index("title: Core") < text.index("A *label image*") < text.index("## Units")


def test_sidebar_lists_every_notebook_once():
    def entries(contents):
        for item in contents:
            if isinstance(item, str):
                yield item
            else:
                yield from entries(item["contents"])

    listed = list(entries(site_settings()["website"]["sidebar"]["contents"]))
    present = [notebook_id(path) for path in notebooks()]
    assert sorted(set(present) - set(listed)) == [], "add these to the sidebar in _quarto.yml"
    assert sorted(set(listed) - set(present)) == [], "remove these from the sidebar in _quarto.yml"
    assert len(listed) == len(set(listed))


def test_site_renders_every_notebook(notebook):
    patterns = site_settings()["project"]["render"]
    page = f"/{notebook_id(notebook)}"
    assert any(page == pattern or pattern.endswith("/") and page.startswith(pattern) for pattern in patterns)


def test_title_cell_has_title_and_promise(notebook):
    """They become the page's title and description, and the promise the docstring of the module."""
    title = next(cell.text for cell in read_cells(notebook) if cell.kind == "markdown")
    assert title.startswith("# "), "the first Markdown cell begins with the title"
    promise = [line for line in title.splitlines() if line.startswith(">")]
    assert len(promise) == 1, f"the promise is one line that begins with `> `: {promise}"


def test_no_text_is_still_to_be_written(notebook):
    texts = [cell.text for cell in read_cells(notebook) if cell.kind == "markdown"]
    found = [mark for text in texts for mark in re.findall(r"\b(?:TODO|FIXME|TBD|TEXT-[A-Z-]+)\b", text)]
    assert not found, found


def test_import_cells_only_import(notebook):
    """The documentation build runs every cell that has an import, without the cells before it."""
    cells = read_cells(notebook)
    if not any(cell.has("export", "exports", "exporti") for cell in cells):
        return
    alone = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    for cell in cells:
        if cell.has("export", "exports", "exporti", "eval") or "nbdev_export()" in cell.text:
            continue
        statements = cell.statements()
        imports = any(isinstance(node, alone[:2]) for top in statements for node in ast.walk(top))
        others = [top for top in statements if not isinstance(top, alone)]
        assert not (imports and others), f"give the imports a cell of their own:\n{cell.text[:300]}"


def test_links_of_notebook_resolve(notebook):
    for cell in read_cells(notebook):
        for link in LINK.findall(cell.text) if cell.kind == "markdown" else []:
            if not re.match(r"[a-z]+:|#", link):
                assert (notebook.parent / link.split("#")[0]).exists(), f"dead link: {link}"


def test_links_of_readme_resolve():
    for link in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:|#", link):
            assert (ROOT / link.split("#")[0]).exists(), f"dead link: {link}"


def test_links_between_pages_resolve(pages):
    addresses = {page_address(path, ROOT / "nbs") for path in notebooks()}
    linked = set()
    for page in pages.rglob("*.ipynb"):
        linked |= {link for link in LINK.findall(page_text(page)) if link.startswith(SITE)}
    dead = [link for link in linked if link[len(SITE) :].split("#")[0] not in addresses]
    assert not dead, dead


def test_saved_widget_link_survives_and_names_become_links(house):
    for path in notebooks(house):
        if path.name != "00_core.ipynb":
            path.unlink()
    core = house / "nbs" / "00_core.ipynb"
    content = json.loads(core.read_text(encoding="utf-8"))
    saved = {"state": LINKED_SLIDERS, "version_major": 2, "version_minor": 0}
    content["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": saved}
    content["cells"].insert(2, {"cell_type": "markdown", "metadata": {}, "source": ["See `label_dtype`."]})
    core.write_text(json.dumps(content), encoding="utf-8")
    page = prepare_pages(house) / "00_core.ipynb"
    metadata = json.loads(page.read_text(encoding="utf-8"))["metadata"]
    assert metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]["c"] == LINKED_SLIDERS["c"]
    assert f"See [`label_dtype`]({SITE}core.html#label_dtype)." in page_text(page)


def test_docstring_sections_and_relative_links():
    from cellseg_nb._docs_render import RELATIVE_LINK, fields_table, raises_section

    def documented():
        """Do nothing.

        Parameters
        ----------
        low, high : float or None
            Two
            numbers.

        Raises
        ------
        ValueError
            The first line
            and the second.
        OSError
            No disk.

        Notes
        -----
        Not shown.
        """

    assert raises_section(documented) == (
        "**Raises**\n\n- `ValueError`: The first line and the second.\n- `OSError`: No disk."
    )
    assert fields_table(documented).splitlines()[2:] == ["| low, high | float or None | Two numbers. |"]
    assert raises_section(lambda: None) == "" == fields_table(lambda: None)
    text = "[a](data/00_io.ipynb) [b](https://x.org/y) [c](#here)"
    assert RELATIVE_LINK.sub(r"nbs/\1", text) == "[a](nbs/data/00_io.ipynb) [b](https://x.org/y) [c](#here)"


def test_types_that_are_not_imported_are_shown_by_name():
    from cellseg_nb._docs_render import TableRenderer

    def predict(
        network: "torch.nn.Module | None",  # a network  # noqa: F821
        image: "list[Picture]",  # pictures  # noqa: F821
        device: "str" = "auto",  # where
    ) -> "Bundle":  # a bundle  # noqa: F821
        """Predict."""

    text = TableRenderer(predict)._repr_markdown_()
    assert "| network | torch.nn.Module \\| None |" in text
    assert "list[Picture]" in text
    assert "**Bundle**" in text
    assert not {"torch", "Picture", "Bundle"} & set(globals())


def test_settings_are_a_table():
    from typing import Literal

    from cellseg_nb._docs_render import TableRenderer
    from cellseg_nb.settings import Settings, setting

    class Parting(Settings):
        """How touching objects are parted."""

        method: Literal["watershed", "multicut"] = setting("watershed", "How | where.")
        min_area_um2: float | None = setting(None, "Smallest kept.", unit="µm²", ge=0, usual="all")

    class PartingOfCommand(Parting):
        """The same, with the help of a command."""

        seed: int = setting(0, "Of what is random.", metavar="N")
        words: tuple[str, ...] = setting((), "Any words.", option="")

    text = TableRenderer(Parting)._repr_markdown_()
    assert text.endswith(
        "| setting | type | allowed | default | what it does |\n"
        "| -- | -- | -- | -- | -- |\n"
        "| `method` | word | `watershed`, `multicut` | watershed | How \\| where. |\n"
        "| `min_area_um2` | float | from 0 µm² | all | Smallest kept. |"
    ), text
    text = TableRenderer(PartingOfCommand)._repr_markdown_()
    assert "| from 0 µm² | all | Smallest kept. | `--min-area-um2` |\n" in text
    assert text.endswith(
        "| `seed` | int |  | 0 | Of what is random. | `--seed` |\n| `words` | tuple of str |  |  | Any words. |  |"
    ), text


def anchor_of(heading: str) -> str:
    """The anchor that the site gives a heading."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", heading).strip().lower())


def test_glossary_is_in_order_and_its_links_resolve():
    def texts(path):
        return [cell.text for cell in read_cells(path) if cell.kind == "markdown"]

    glossary = texts(ROOT / "nbs" / "glossary.ipynb")
    words = [text.splitlines()[0].removeprefix("## ") for text in glossary if text.startswith("## ")]
    assert words == sorted(words, key=str.lower)
    anchors = {anchor_of(word) for word in words}
    assert len(anchors) == len(words) > 60
    wanted = {(link, "glossary") for link in re.findall(r"\]\(#([^)]+)\)", "\n".join(glossary))}
    for path in notebooks():
        links = re.findall(r"glossary\.ipynb#([\w.-]+)", "\n".join(texts(path)))
        wanted |= {(link, notebook_id(path)) for link in links}
    assert not (dead := {(link, page) for link, page in wanted if link not in anchors}), dead


def make_docs(house: Path, fails: str = "") -> tuple[int, list[str]]:
    """Run `make docs` where every program only writes down how it was called, and one of them fails."""
    programs, log = house / ".venv" / "bin", house / "log"
    programs.mkdir(parents=True)
    for name in ("quarto", "ruff", "nbdev_export", "nbdev_clean", "nbdev_docs", "jupyter", "python"):
        fail = f'fails="^({fails})"; [[ "{name} $*" =~ $fails ]] && exit 1' if fails else ""
        text = f'#!/bin/bash\necho "{name} $*" >> {log}\n{fail}\n[[ "$*" == *--live ]] && echo nbs/live.ipynb\nexit 0\n'
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in ("Makefile", "settings.ini", "setup.py"):
        shutil.copy(ROOT / name, house)
    (house / ".venv" / ".installed").touch()
    done = subprocess.run(["make", "docs"], cwd=house, capture_output=True, text=True)
    return done.returncode, log.read_text().splitlines()


@pytest.mark.parametrize("fails", ["jupyter", "nbdev_docs", "python -m cellseg_nb._docs_render --live"])
def test_docs_that_fail_say_so_and_leave_clean_notebooks(tmp_path, fails):
    code, log = make_docs(tmp_path, fails)
    assert code != 0
    assert log[-3].startswith(fails) and log[-2:] == ["nbdev_clean ", "python -m cellseg_nb._docs_render"]


def test_docs_show_what_lives_and_are_finished(tmp_path):
    code, log = make_docs(tmp_path)
    assert code == 0
    assert log[-5].startswith("jupyter nbconvert") and log[-5].endswith(" nbs/live.ipynb")
    assert log[-3] == "python -m cellseg_nb._docs_render --finish"


@pytest.mark.parametrize(("fails", "fine"), [("quarto", True), ("quarto|python.*--pages", False)])
def test_pages_without_quarto_are_prepared_or_say_so(tmp_path, fails, fine):
    code, log = make_docs(tmp_path, fails)
    assert (code == 0) == fine
    assert log[-1] == "python -m cellseg_nb._docs_render --pages"


def test_live_notebooks_without_and_with_data_sets(monkeypatch):
    from cellseg_nb._docs_render import live_notebooks

    monkeypatch.delenv("CELLSEG_DATA", raising=False)
    without = {path.name for path in live_notebooks()}
    monkeypatch.setenv("CELLSEG_DATA", "somewhere")
    assert {path.name for path in live_notebooks()} - without >= {"13_phase.ipynb", "14_foreground.ipynb"}
    assert "02_simulate.ipynb" in without


COMMANDS_AND_OPTIONS = """
import json
from typer.main import get_command
from cellseg_nb._docs_render import command_contexts
from cellseg_nb.run.cli import app

found = {}
for context in command_contexts(get_command(app), "cellseg"):
    options = [one for one in context.command.params if one.param_type_name == "option"]
    found[context.command_path] = [name for one in options for name in (*one.opts, *one.secondary_opts)]
print(json.dumps(found))
"""


def test_command_line_page_holds_every_option(pages):
    text = page_text(pages / "run" / "01_cli.ipynb")
    # in a process of its own: tests before this one may have registered tasks, which become commands
    told = subprocess.run([sys.executable, "-c", COMMANDS_AND_OPTIONS], capture_output=True, text=True, check=True)
    commands = json.loads(told.stdout)
    assert len(commands) > 50
    for command, options in commands.items():
        assert f"### {command}\n" in text
        section = text.split(f"### {command}\n")[1].split("\n### ")[0]
        for name in options:
            assert name in section, f"{command} {name}"
    assert "| `--tile PX` | 1024 | Edge of a tile, in pixels. |" in text
    assert "| `--model NAME|DIR` | nuclei |" in text
    assert "| `INPUT` | required | Image files, or folders of them. |" in text


def test_classes_are_classes_with_their_fields(pages):
    text = page_text(pages / "segment" / "12_image.ipynb")
    assert "```python\nclass Segmentation(NamedTuple)\n```" in text
    assert "| labels | np.ndarray |  | label image; integer; (Y, X); 0 = background |" in text
    for page in pages.rglob("*.ipynb"):
        for block in re.findall(r"```python\n(def .*?|class .*?)\n```", page_text(page), flags=re.DOTALL):
            assert not re.match(r"def (?!UneXt101)[A-Z]", block), f"{page.name}: {block}"  # that one is a function
            assert "](http" not in block, f"{page.name}: {block}"
            assert not re.match(r"\w+ \w+\(\s*\*args, \*\*kwargs\s*\)$", block), f"{page.name}: {block}"


def test_asterisks_and_bars_survive_in_tables():
    from cellseg_nb._docs_render import plain_text, table_row

    assert plain_text("2 * 3 < `a * b` * 4") == r"2 \* 3 \< `a * b` \* 4"
    assert plain_text(r"a \* b") == r"a \* b"
    assert plain_text(r"`A\|B` \| c") == r"`A|B` \| c"
    assert table_row("x", "int | None", "*.tif") == r"| x | int \| None | \*.tif |"


def cell_pictures(cell: dict) -> bool:
    return any(kind.startswith("image/") for out in cell.get("outputs", []) for kind in out.get("data", {}))


def test_every_picture_has_an_alternative_text(pages):
    pictures = 0
    for page in pages.rglob("*.ipynb"):
        for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            if cell_pictures(cell):
                pictures += 1
                assert re.search(r'^#\| fig-alt: "[^"]{4,250}"$', text, re.MULTILINE), f"{page.name}: {text[:200]}"
            assert cell["cell_type"] != "markdown" or not re.search(r"!\[\s*\]\(", text), f"{page.name}: {text[:200]}"
    assert pictures > 100


def test_alternative_text_says_what_stands_before_or_in_the_picture():
    from cellseg_nb._docs_render import alternative_text

    assert alternative_text("## A *score*", "First. Then [this](x.ipynb):") == "A score: Then this"
    code = 'ax.set_title("Truth")\nother.set(title="It\'s found")\nax.set_title(f"{n} cells")'
    assert alternative_text("## A score", "Then this.", code) == "A score: Truth; It’s found"
    assert alternative_text("## A score", "") == "A score"


def test_rendered_pages_fetch_no_loader_and_describe_pictures(tmp_path):
    from cellseg_nb._docs_render import finish_site

    page = tmp_path / "apps" / "points.html"
    page.parent.mkdir()
    page.write_text(
        '<script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js" crossorigin="anonymous"></script>'
        '<script src="https://unpkg.com/@jupyter-widgets/html-manager@*/dist/embed-amd.js"></script>'
        '<h2 id="a">Points <code>here</code></h2><img src="a.png"><img alt="" src="b.png"><img alt="c" src="c.png">'
    )
    finish_site(tmp_path)
    text = page.read_text()
    assert "cdnjs" not in text and "html-manager@1.0.14/dist" in text and "@*" not in text
    for name in ("require.min.js", "anywidget.js"):
        assert (tmp_path / "site_libs" / "own" / name).stat().st_size > 10_000
    assert 'src="../site_libs/own/require.min.js"' in text
    assert re.findall(r"<img [^>]*>", text) == [
        '<img alt="Points here" src="a.png">',
        '<img alt="Points here" src="b.png">',
        '<img alt="c" src="c.png">',
    ]
    finish_site(tmp_path)
    assert page.read_text() == text


def test_site_calls_no_foreign_server():
    text = (ROOT / "nbs" / "site.scss").read_text() + (ROOT / "nbs" / "styles.css").read_text()
    assert "$web-font-path: false;" in text
    assert not re.search(r"@import|url\(|https?:", text)
    html = site_settings()["format"]["html"]
    assert html["html-math-method"] == "mathml"
    assert all(theme[-1] == "site.scss" for theme in html["theme"].values())


def test_sidebar_is_in_the_order_of_use():
    contents = site_settings()["website"]["sidebar"]["contents"]
    sections = {item["section"]: item["contents"] for item in contents}
    assert list(sections) == ["Start", "Lessons", "How-tos", "Apps", "Models", "Reference"]
    assert sections["Start"][:2] == ["index.ipynb", "run/00_analyse.ipynb"]
    assert all(re.fullmatch(r"apps/[a-z].*", page) for page in sections["Apps"])
    assert site_settings()["website"]["page-navigation"] is True


@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "lessons").glob("*.ipynb")), ids=lambda path: path.stem)
def test_lesson_can_be_started_from_its_page(pages, path):
    place = path.relative_to(ROOT).as_posix()
    cells = json.loads((pages / path.relative_to(ROOT / "nbs")).read_text(encoding="utf-8"))["cells"]
    text = "".join(cells[2]["source"])
    assert f"(https://raw.githubusercontent.com/cellseg-nb/cellseg_nb/main/{place})" in text
    assert f"(https://colab.research.google.com/github/cellseg-nb/cellseg_nb/blob/main/{place})" in text
    assert f"(https://mybinder.org/v2/gh/cellseg-nb/cellseg_nb/main?urlpath=lab/tree/{place})" in text
    assert "`make lab`" in text
    assert (ROOT / ".binder" / "requirements.txt").read_text().splitlines()[0] == "."
    for cell in cells:
        lines = [line for line in "".join(cell["source"]).splitlines() if line and not line.startswith("#|")]
        if cell["cell_type"] == "code" and len(lines) > 3 and all(re.match(r"(from|import) ", line) for line in lines):
            assert "#| code-fold: true" in "".join(cell["source"])


def test_search_finds_what_newcomers_ask_for(pages):
    found = [page.stem for page in pages.rglob("*.ipynb") if "count cells from points" in page_text(page)]
    assert "04_counting" in found


def test_outputs_hold_no_warnings_and_no_empty_boxes(notebook):
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                text = "".join(output["text"])
                assert text.strip(), "".join(cell["source"])[:200]
                if output["name"] == "stderr":  # a command may show the one line of an error
                    assert all(line.startswith("error: ") for line in text.strip().splitlines()), text[:200]


def test_gray_has_one_spelling(notebook):
    texts = [cell.text for cell in read_cells(notebook)]
    found = [word for text in texts for word in re.findall(r"\bgrey\w*", text, re.IGNORECASE)]
    assert set(found) <= {"grey_dilation", "grey_erosion"}  # names of SciPy


def test_scoreboard_shows_whole_numbers_as_such(pages):
    cells = json.loads((pages / "scoreboard.ipynb").read_text(encoding="utf-8"))["cells"]
    tables = "".join("".join(out.get("data", {}).get("text/html", "")) for c in cells for out in c.get("outputs", []))
    assert "<td>3715</td>" in tables and "3715.0" not in tables

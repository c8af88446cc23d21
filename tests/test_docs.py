"""The documentation as far as it is made without Quarto: pages, sidebar, links, tables, widgets."""

import ast
import json
import re
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
    assert {"_quarto.yml", "nbdev.yml", "styles.css"} <= {path.name for path in pages.iterdir()}
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

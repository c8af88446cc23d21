"""What the documentation needs beyond nbdev: parameter tables, introductions, sliders, README.md.

Written by hand and imported only while documentation is made. settings.ini names `TableRenderer`,
`keep_introduction` and `keep_widget_links`. `python -m cellseg_nb._docs_render` drops the pictures
of real cells from the notebooks and writes README.md from nbs/index.ipynb; with `--pages` it prepares the site's pages in _proc. Neither needs Quarto.
"""

import inspect
import posixpath
import re
import sys
from contextlib import contextmanager
from pathlib import Path

from execnb.nbio import mk_cell, read_nb, write_nb
from fastcore.docments import DocmentTbl
from nbdev.config import get_config
from nbdev.processors import Processor
from nbdev.showdoc import BasicMarkdownRenderer

from cellseg_nb.settings import Settings, settings_table

LIVE = "# Shown live only"
SECTION = r"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n-{{3,}}\n|\Z)"
TITLE = re.compile(r"\s*# [^\n]*\n*(> [^\n]*\n*)*")
RELATIVE_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s]+)")


def docstring_section(
    symbol,  # function or class with a numpydoc docstring
    title: str,  # "Parameters", "Raises"
) -> list[tuple[str, str]]:  # each entry's unindented line, and its indented text as one line
    """Read one section of a docstring; empty when there is none."""
    pattern = re.compile(SECTION.format(title=title), flags=re.MULTILINE | re.DOTALL)
    match = pattern.search(inspect.getdoc(symbol) or "")
    entries = []
    for line in match.group(1).splitlines() if match else []:
        if line and not line.startswith(" "):
            entries.append((line.strip(), ""))
        elif line.strip() and entries:
            head, text = entries[-1]
            entries[-1] = (head, f"{text} {line.strip()}".strip())
    return entries


def raises_section(symbol) -> str:
    """Give the errors of a function as a Markdown list."""
    entries = [f"- `{error}`: {text}" for error, text in docstring_section(symbol, "Raises")]
    return "\n".join(["**Raises**", "", *entries]) if entries else ""


def fields_table(symbol) -> str:
    """Give the documented fields of a configuration class as a Markdown table."""
    rows = []
    for head, text in docstring_section(symbol, "Parameters"):
        names, _, kind = head.partition(" : ")
        rows.append("| " + " | ".join(part.replace("|", "\\|") for part in (names, kind, text)) + " |")
    return "\n".join(["|    | **Type** | **Details** |", "| -- | -------- | ----------- |", *rows]) if rows else ""


class ParameterTable(DocmentTbl):
    """fastcore's parameter table; the bar of `float | None` does not start a new column."""

    def __init__(self, symbol):
        super().__init__(symbol)
        for properties in self.dm.values():
            for key, value in properties.items():
                if value is not inspect.Parameter.empty:
                    text = getattr(value, "__name__", None) or str(value)
                    properties[key] = text.replace("|", "\\|").replace("\n", " ")


def parameter_table(symbol) -> str:
    """Give settings, parameters, or documented fields, as a Markdown table."""
    if isinstance(symbol, type) and issubclass(symbol, Settings):
        return settings_table(symbol).strip()
    return ParameterTable(symbol)._repr_markdown_() or fields_table(symbol)


class NameOnly(type):
    """Stands for a type that only type checkers import: it knows no more than its name."""

    def __new__(cls, name):
        return super().__new__(cls, name, (), {"__module__": "builtins"})

    def __init__(cls, name):
        super().__init__(name, (), {})

    def __getattr__(cls, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return NameOnly(f"{cls.__name__}.{name}")


@contextmanager
def names_of_types(symbol):
    """Let signatures be read whose types are written as text and are not imported."""
    symbol = symbol.fget if isinstance(symbol, property) else symbol
    scope = getattr(symbol, "__globals__", None) or vars(sys.modules[symbol.__module__])
    added = []
    try:
        while True:
            try:
                inspect.signature(symbol, eval_str=True)
            except NameError as error:
                scope[error.name] = NameOnly(error.name)
                added.append(error.name)
            except (TypeError, ValueError):  # no signature at all, which nbdev shows as such
                break
            else:
                break
        yield
    finally:
        for name in added:
            del scope[name]


class TableRenderer(BasicMarkdownRenderer):
    """nbdev's rendering of a symbol, followed by its parameter table and the errors it raises."""

    def __init__(self, sym, **options):
        with names_of_types(sym):
            super().__init__(sym, **options)

    def _repr_markdown_(self):
        with names_of_types(self.sym):
            table = "" if isinstance(self.sym, property) else parameter_table(self.sym)
            parts = [super()._repr_markdown_(), table, raises_section(self.sym)]
        return "\n\n".join(part for part in parts if part)


class Lines(list):
    """A list that survives the notebook writer, which splits every `source` into lines."""

    def splitlines(self, keepends=False):
        return list(self)


class keep_widget_links(Processor):
    """Keep saved `jslink`s: their `source` is a list, where the writer expects text."""

    def end(self):
        self.wrap(self.nb.get("metadata", {}).get("widgets", {}))

    def wrap(self, value):
        if isinstance(value, dict):
            for key, item in value.items():
                if key == "source" and isinstance(item, list):
                    value[key] = Lines(item)
                else:
                    self.wrap(item)
        elif isinstance(value, list):
            for item in value:
                self.wrap(item)


class keep_introduction(Processor):
    """Keep what follows title and promise in the first cell: it moves to a cell of its own.

    nbdev takes the whole first cell away, so this happens early, when the processor is made.
    """

    def __init__(self, nb):
        super().__init__(nb)
        for position, cell in enumerate(nb.cells):
            match = TITLE.match(cell.source) if cell.cell_type == "markdown" else None
            if match:
                introduction = cell.source[match.end() :].strip("\n")
                if introduction:
                    cell.source = match.group(0)
                    nb.cells.insert(position + 1, mk_cell(introduction, "markdown"))
                break


def readme_text(
    notebook: Path,  # the landing page, nbs/index.ipynb
    git_url: str,  # links to files of this repository become relative
    branch: str = "main",
) -> str:  # Markdown
    """Turn the landing page into README.md: no hidden cells, links relative to the repository."""
    import nbformat
    from nbconvert import MarkdownExporter

    page = nbformat.read(notebook, as_version=4)
    page.cells = [cell for cell in page.cells if not cell.source.startswith("#| hide")]
    text, _ = MarkdownExporter().from_notebook_node(page)
    folder = notebook.parent.name
    text = RELATIVE_LINK.sub(lambda match: posixpath.normpath(f"{folder}/{match.group(1)}"), text)
    text = text.replace(f"({git_url}/blob/{branch}/", "(").replace(f"({git_url}/tree/{branch}/", "(")
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join(lines) + "\n"


def write_readme():
    """Write README.md of this repository from its landing page."""
    config = get_config()
    text = readme_text(config.nbs_path / config.readme_nb, config.git_url, config.branch)
    (config.config_path / "README.md").write_text(text, encoding="utf-8")


def drop_live_pictures():
    """Empty the outputs of cells that start with `LIVE`: the repository holds simulated pictures only."""
    for path in sorted(get_config().nbs_path.rglob("*.ipynb")):
        notebook = read_nb(path)
        live = [cell for cell in notebook.cells if cell.source.startswith(LIVE)]
        if any(cell.outputs for cell in live):
            for cell in live:
                cell.outputs = []
            write_nb(notebook, path)


def prepare_pages() -> Path:  # the folder _proc, from which Quarto renders the site
    """Do all of the documentation build that needs no Quarto: run nbdev's notebook processing."""
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs

    refresh_quarto_yml()
    return proc_nbs(n_workers=2, force=True)


if __name__ == "__main__":
    if "--pages" in sys.argv:
        prepare_pages()
    else:
        drop_live_pictures()
        write_readme()

"""What the documentation needs beyond nbdev: parameter tables, introductions, sliders, README.md.

Written by hand and imported only while documentation is made. settings.ini names `TableRenderer` and the processors of pages
(classes in small letters). `python -m cellseg_nb._docs_render` drops the pictures of real cells from the notebooks and writes
README.md from nbs/index.ipynb; `--pages` prepares the site's pages in _proc, `--live` lists the notebooks that show real cells.
None needs Quarto. `--finish` gives the rendered site in _docs its scripts, and texts to pictures that have none.
"""

import ast
import html
import inspect
import json
import os
import posixpath
import re
import shutil
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from textwrap import dedent

from execnb.nbio import mk_cell, read_nb, write_nb
from fastcore.docments import DocmentTbl
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
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


def plain_text(text: str) -> str:
    """Keep asterisks and angle brackets outside `code` from being read as Markdown, and show bars inside it as they are."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part.replace(r"\|", "|") if part.startswith("`") else re.sub(r"(?<!\\)([*<])", r"\\\1", part) for part in parts
    )


def table_row(*cells: str) -> str:
    """Give one row of a Markdown table."""
    return "| " + " | ".join(plain_text(cell.replace("|", "\\|")) for cell in cells) + " |"


def fields_table(symbol) -> str:
    """Give the documented fields of a configuration class as a Markdown table."""
    rows = []
    for head, text in docstring_section(symbol, "Parameters"):
        names, _, kind = head.partition(" : ")
        rows.append(table_row(names, kind, text))
    return "\n".join(["|    | **Type** | **Details** |", "| -- | -------- | ----------- |", *rows]) if rows else ""


class ParameterTable(DocmentTbl):
    """fastcore's parameter table; the bar of `float | None` does not start a new column."""

    def __init__(self, symbol):
        super().__init__(symbol)
        for properties in self.dm.values():
            for key, value in properties.items():
                if value is not inspect.Parameter.empty:
                    text = getattr(value, "__name__", None) or str(value)
                    properties[key] = plain_text(text.replace("|", "\\|").replace("\n", " "))


def exported(symbol: type) -> type:
    """Find the class in its module; where a page has run its code, Python cannot read its source."""
    places = [place for known in NbdevLookup().entries.values() for place in known["syms"].values()]
    for name in {name for place in places for name in place if name.rpartition(".")[2] == symbol.__name__}:
        found = getattr(import_module(name.rpartition(".")[0]), symbol.__name__, None)
        if isinstance(found, type) and found.__doc__ == symbol.__doc__:
            return found
    return symbol


def class_fields(
    symbol: type,  # a named tuple or a dataclass
) -> list[tuple[str, str, str, str]]:  # name, type, default and comment of each field; none of other classes
    """Read the fields of a class, those of its parents first."""
    rows = {}
    for one in reversed(symbol.__mro__):
        if not (hasattr(one, "_fields") or "__dataclass_fields__" in vars(one)) or "__annotations__" not in vars(one):
            continue
        lines = inspect.getsource(one).splitlines()
        for node in ast.parse(dedent("\n".join(lines))).body[0].body:
            if isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_"):
                comments = [line.partition("  # ")[2] for line in lines[node.lineno - 1 : node.end_lineno]]
                default = ast.unparse(node.value) if node.value else ""
                rows[node.target.id] = (
                    ast.unparse(node.annotation).strip("'\""),
                    default,
                    " ".join(filter(None, comments)),
                )
    return [(name, *row) for name, row in rows.items()]


def class_table(symbol: type) -> str:
    """Give the fields of a named tuple or a dataclass as a Markdown table."""
    rows = [table_row(*field) for field in class_fields(symbol)]
    head = ["|    | **Type** | **Default** | **Details** |", "| -- | -------- | ----------- | ----------- |"]
    return "\n".join([*head, *rows]) if rows else ""


def parameter_table(symbol) -> str:
    """Give settings, fields, parameters, or documented parameters, as a Markdown table."""
    if isinstance(symbol, type) and issubclass(symbol, Settings):
        return plain_text(settings_table(symbol).strip())
    if isinstance(symbol, type) and (table := class_table(symbol)):
        return table
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


SIGNATURE = re.compile(r"(?<=```python\n)(def [^(\n]*)(.*?)(?=\n```)", flags=re.DOTALL)


def class_head(symbol: type) -> str:
    """Give the first line of a class: its name and what it is made of."""
    if hasattr(symbol, "_fields") and issubclass(symbol, tuple):
        return f"class {symbol.__name__}(NamedTuple)"
    parents = ", ".join(one.__name__ for one in symbol.__bases__ if one is not object)
    return f"class {symbol.__name__}({parents})" if parents else f"class {symbol.__name__}"


def shown_signature(
    text: str,  # what nbdev renders
    symbol,  # what it is of
) -> str:
    """Say `class` for classes, without what says nothing; links have no place in code."""

    def written(match):
        name, rest = match.groups()
        if isinstance(symbol, type):
            known = (
                class_fields(symbol) or issubclass(symbol, Settings) or re.fullmatch(r"\(\s*\*args.*", rest, re.DOTALL)
            )
            if known:
                return class_head(symbol)
            name, rest = name.replace("def ", "class ", 1), re.sub(r"\)(->None)?:$", ")", rest)
        return (name + rest).replace("`", "")

    return SIGNATURE.sub(written, text, count=1)


class TableRenderer(BasicMarkdownRenderer):
    """nbdev's rendering of a symbol, followed by its parameter table and the errors it raises."""

    def __init__(self, sym, **options):
        with names_of_types(sym):
            super().__init__(sym, **options)

    def _repr_markdown_(self):
        symbol = exported(self.sym) if isinstance(self.sym, type) else self.sym
        with names_of_types(symbol), names_of_types(self.sym):
            table = "" if isinstance(symbol, property) else parameter_table(symbol)
            parts = [shown_signature(super()._repr_markdown_(), symbol), table, raises_section(symbol)]
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


COMMANDS = "#| default_exp run.cli"
HELP = re.compile(r"\s*\[(?:required|default: (?P<default>.*?))(?:; required)?\]$", flags=re.DOTALL)


def command_contexts(command, name: str, parent=None):
    """Give the context of a command and of all commands below it, each of which knows its parameters."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    yield context
    if hasattr(context.command, "list_commands"):
        for below in context.command.list_commands(context):
            yield from command_contexts(context.command.get_command(context, below), below, context)


def option_row(
    names: str,  # such as `--out DIR`
    text: str,  # its help, with the default in brackets
) -> str:
    """Give an argument or option as a row: names, default, help."""
    match = HELP.search(text)
    default = "required" if match and match["default"] is None else match["default"] if match else ""
    return table_row(f"`{re.sub(r' <.*>$', '', names)}`", default, HELP.sub("", text))


def command_reference(
    command,  # of click
    name: str = "cellseg",
) -> str:  # Markdown: a section for every command
    """Write the reference of a command line from the commands themselves."""
    sections = ["## Every command and its options"]
    for context in command_contexts(command, name):
        records = [one.get_help_record(context) for one in context.command.get_params(context)]
        rows = [option_row(*record) for record in records if record and not record[0].startswith("--help")]
        sections += [f"### {context.command_path}", plain_text(inspect.cleandoc(context.command.help or ""))]
        if rows:
            sections.append("\n".join(["| option | default | what it does |", "| -- | -- | ---- |", *rows]))
    return "\n\n".join(sections)


class add_command_reference(Processor):
    """The page of the command line ends with all commands and options, as the commands name them."""

    def __init__(self, nb):
        super().__init__(nb)
        if any(cell.source.strip() == COMMANDS for cell in nb.cells):
            from typer.main import get_command

            from cellseg_nb.run.cli import app

            nb.cells.append(mk_cell(command_reference(get_command(app)), "markdown"))


def sentences(markdown: str) -> str:
    """Take links, code and other marks out of a paragraph."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return " ".join(re.sub(r"[`*#>$|\"\\]", "", text).replace("'", "’").split())


FIGURE_TITLE = re.compile(r"""\b(?:set_title\(|suptitle\(|title\(|title=)\s*(?:"([^"{}]+)"|'([^'{}]+)')""")


def alternative_text(
    heading: str,  # the one above the picture
    paragraph: str,  # the text before it
    code: str = "",  # what draws it
) -> str:
    """Say what a picture shows: the heading above it, and the titles in it or the sentence that leads to it."""
    last = re.split(r"(?<=[.:?!])\s+", sentences(paragraph))[-1].rstrip(":")
    titles = "; ".join(sentences(one or other) for one, other in FIGURE_TITLE.findall(code))
    return ": ".join(filter(None, (sentences(heading), titles or last)))[:250]


class add_alternative_texts(Processor):
    """Every picture has a text for those who cannot see it: `#| fig-alt: …` in its cell, or what stands before it."""

    def end(self):
        heading, paragraph = str(getattr(self.nb, "frontmatter_", {}).get("title", "")), ""
        for cell in self.nb.cells:
            text = cell.get("source") or ""
            if cell.cell_type == "markdown" and not text.startswith(("<!--", ":::")):
                for line in re.split(r"\n{2,}", text):
                    heading, paragraph = (line.splitlines()[0], "") if line.startswith("#") else (heading, line)
            elif cell.cell_type == "code" and text and "#| fig-alt:" not in text:
                kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
                if any(kind.startswith("image/") for kind in kinds):
                    cell.source = f"#| fig-alt: {json.dumps(alternative_text(heading, paragraph, text), ensure_ascii=False)}\n{text}"


class fold_imports(Processor):
    """Cells of four and more lines that only import are folded."""

    def end(self):
        for cell in self.nb.cells:
            text = cell.get("source") or ""
            if cell.cell_type == "code" and "#| code-fold" not in text and len(text.splitlines()) > 3:
                statements = cell.parsed_() or []
                if statements and all(isinstance(one, (ast.Import, ast.ImportFrom)) for one in statements):
                    cell.source = f'#| code-fold: true\n#| code-summary: "Imports"\n{text}'


TAUGHT = ("lessons", "howto")
SEARCHED = {  # what people look for in other words than the page's
    "lessons/04_counting.ipynb": "count cells from points, cell counting, dot annotations, density map",
    "lessons/01_nuclei.ipynb": "segment nuclei, DAPI, fluorescence, count nuclei, instance segmentation",
    "lessons/02_cells_in_3d.ipynb": "segment a z-stack, cells in 3D, membranes, light sheet, confocal",
    "lessons/03_stardist_and_pipelines.ipynb": "StarDist, train on my own labels, reproducible pipeline",
    "lessons/05_whole_slides.ipynb": "whole slide image, SVS, histology, glomeruli",
    "run/00_analyse.ipynb": "segment my own images, measure cells, table of areas",
}


def lesson_links(
    place: str,  # of the notebook in the repository
    config,  # of nbdev
) -> str:  # Markdown
    """Give the ways to start a lesson: a file, Colab, Binder, `make lab`."""
    repository = f"{config.user}/{config.repo}"
    raw = config.git_url.replace("//github.com", "//raw.githubusercontent.com")
    return (
        f"[Download this lesson]({raw}/{config.branch}/{place}){{download={Path(place).name}}} · "
        f"[Open in Colab](https://colab.research.google.com/github/{repository}/blob/{config.branch}/{place}) · "
        f"[Open in Binder](https://mybinder.org/v2/gh/{repository}/{config.branch}?urlpath=lab/tree/{place}) · "
        f"on your computer: `make lab`. In Colab, first run `%pip install git+{config.git_url}`."
    )


class add_page_links(Processor):
    """Lessons begin with the ways to start them; pages that are looked for in other words end with these."""

    def __init__(self, nb):
        super().__init__(nb)
        config = get_config()
        page = Path(nb.path_).resolve().relative_to(config.nbs_path.resolve()).as_posix()
        if page.split("/")[0] in TAUGHT:
            first = next(at for at, cell in enumerate(nb.cells) if cell.cell_type == "markdown")
            links = lesson_links(f"{config.nbs_path.name}/{page}", config)
            nb.cells.insert(first + 1, mk_cell(f"::: {{.lesson-links}}\n{links}\n:::", "markdown"))
        if page in SEARCHED:
            nb.cells.append(mk_cell(f"::: {{.search-words}}\nAlso looked for as: {SEARCHED[page]}.\n:::", "markdown"))


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


def undocumented(
    pages: Path,  # the prepared pages
) -> list[str]:  # "page: show_doc(name)" of every name whose documentation failed
    """List what a page should say about a name and does not; IPython prints such an error and goes on."""
    missing = []
    for path in sorted(pages.rglob("*.ipynb")):
        for cell in read_nb(path).cells:
            call = cell.source.splitlines()[-1] if cell.cell_type == "code" and cell.source else ""
            shown = [output for output in cell.get("outputs", []) if "text/markdown" in output.get("data", {})]
            if call.startswith("show_doc(") and not shown:
                missing.append(f"{path.relative_to(pages)}: {call}")
    return missing


def prepare_pages() -> Path:  # the folder _proc, from which Quarto renders the site
    """Do all of the documentation build that needs no Quarto: run nbdev's notebook processing."""
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs

    refresh_quarto_yml()
    pages = proc_nbs(n_workers=2, force=True)
    if missing := undocumented(pages):
        sys.exit("the documentation of these names failed, as said above: " + "; ".join(missing))
    return pages


def live_notebooks() -> list[Path]:
    """List the notebooks that show real cells; those that need a data set only where CELLSEG_DATA names its folder."""
    found = []
    for path in sorted(get_config().nbs_path.rglob("*.ipynb")):
        sources = [cell.source for cell in read_nb(path).cells]
        needs_data = any(source.startswith("#| data") for source in sources)
        if any(LIVE in source for source in sources) and (os.environ.get("CELLSEG_DATA") or not needs_data):
            found.append(path)
    return found


MANAGER = "@jupyter-widgets/html-manager"
MANAGER_VERSION = "1.0.14"
FOREIGN_SCRIPT = re.compile(r'<script [^>]*?src="(https?://[^"]+)"[^>]*>')
PICTURE = re.compile(r"<img\b[^>]*>|<h[1-6]\b[^>]*>(?P<heading>.*?)</h[1-6]>", flags=re.DOTALL)


def own_scripts() -> dict[str, Path]:
    """Find the scripts of sliders that came with Voilà and anywidget."""
    shared = Path(sys.prefix, "share", "jupyter")
    return {
        "require.min.js": shared / "voila" / "templates" / "base" / "static" / "require.min.js",
        "anywidget.js": shared / "nbextensions" / "anywidget" / "index.js",
    }


def local_scripts(
    page: str,  # HTML
    up: str = "",  # the way to the folder of the site, as "../"
) -> str:
    """Take the loader of scripts, and the widgets, from the site itself; name one version of the rest."""

    def written(match):
        tag, address = match.group(0), match.group(1)
        if re.search(r"/require(\.min)?\.js$", address):
            paths = f"paths: {{anywidget: '{up}site_libs/own/anywidget'}}"
            tag = f'<script>var require = {{{paths}}};</script>\n<script src="{up}site_libs/own/require.min.js">'
        elif MANAGER in address:
            tag = tag.replace(address, re.sub(rf"{MANAGER}(@[^/]*)?", f"{MANAGER}@{MANAGER_VERSION}", address))
        return tag

    return FOREIGN_SCRIPT.sub(written, page)


def described_pictures(page: str) -> str:
    """Give pictures without alternative text that of the heading above them."""
    heading = ""

    def written(match):
        nonlocal heading
        if match["heading"] is not None:
            heading = " ".join(html.unescape(re.sub(r"<[^>]*>", "", match["heading"])).split())
        elif not re.search(r'\balt="[^"]', match.group(0)):
            bare = re.sub(r'\s*\balt=""', "", match.group(0))
            return f'{bare[:4]} alt="{html.escape(heading)}"{bare[4:]}'
        return match.group(0)

    return PICTURE.sub(written, page)


def finish_site(
    folder: Path,  # the rendered site
):
    """Give the rendered pages their own scripts, and every picture a text."""
    own = folder / "site_libs" / "own"
    own.mkdir(parents=True, exist_ok=True)
    for name, path in own_scripts().items():
        shutil.copy(path, own / name)
    for path in sorted(folder.rglob("*.html")):
        up = "../" * (len(path.relative_to(folder).parts) - 1)
        path.write_text(described_pictures(local_scripts(path.read_text(encoding="utf-8"), up)), encoding="utf-8")


if __name__ == "__main__":
    if "--pages" in sys.argv:
        prepare_pages()
    elif "--live" in sys.argv:
        print(*live_notebooks())
    elif "--finish" in sys.argv:
        finish_site(get_config().doc_path)
    else:
        drop_live_pictures()
        write_readme()

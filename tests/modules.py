"""The modules of a checkout: which there are, what each imports, and where imports go in circles."""

import ast
import builtins
import symtable
from pathlib import Path

PACKAGE = "cellseg_nb"
ROOMS = [
    "places",
    "core",
    "settings",
    "store",
    "working",
    "measure",
    "data",
    "models",
    "segment",
    "train",
    "run",
    "apps",
]
INDEX = "_modidx.py"  # written for nbdev, read by nobody


def modules(root: Path) -> dict[str, Path]:
    """Full name -> file of every module of the package; a folder has the name of the folder."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if path.name != INDEX:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """The room of a module: data of cellseg_nb.data.io."""
    return (module.split(".") + [""])[1]


def imported(tree: ast.AST, package: str = "") -> set[str]:
    """All names that a file imports, at its top or inside a function.

    `from a import b` gives a.b, which may be a module or something in one; a name that is given to
    `import_module` counts as well. `package` is where relative imports begin.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = [*base, node.module or ""] if node.level else [node.module]
            names |= {".".join([*filter(None, start), alias.name]) for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return names


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports."""
    known, graph = modules(root), {}
    for module, path in known.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = imported(ast.parse(path.read_text(encoding="utf-8")), package)
        found = {name if name in known else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in found if name in known and name != PACKAGE} - {module}
    return graph


def undefined_names(text: str) -> set[str]:
    """Names that code takes from its module, and that neither the module nor Python has."""
    top = symtable.symtable(text, "", "exec")
    known = {*dir(builtins), "__file__"}
    known |= {one.get_name() for one in top.get_symbols() if one.is_assigned() or one.is_imported()}
    wanted, waiting = set(), [top]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        names = [one for one in table.get_symbols() if one.is_referenced()]
        wanted |= {one.get_name() for one in names if one.is_global() or table is top}
    return wanted - known


def import_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which imports all others of its group, directly or through some."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    after = {module: reached(module) for module in graph}
    groups = {
        tuple(sorted(other for other in after[module] if module in after.get(other, ())))
        for module in graph
        if module in after[module]
    }
    return sorted(map(list, groups))


def line_count(path: Path) -> int:
    """All lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())

"""The house itself: nothing grows beyond what one can read, and nothing imports in a circle."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "fastdiffusion"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a body, its docstring not counted."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, for type checkers and inside functions included."""
    known = {name_of(other) for other in FILES}
    package = path.relative_to(SOURCE).parent.parts
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                full = ".".join([*base, alias.name])
                found.add(full if full in known else ".".join(base))
    return found - {name_of(path)}


def test_files_can_be_read_at_once():
    assert {name_of(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 500} == {}


def test_functions_can_be_read_at_once():
    functions = [(p, f) for p, t in TREES.items() for f in ast.walk(t) if isinstance(f, ast.FunctionDef)]
    assert {f"{name_of(p)}.{f.name}": length(f) for p, f in functions if length(f) > 60} == {}


def test_constructors_take_few_arguments():
    """An options dataclass may have many: each of its fields is a flag, and says what it is for."""
    many = {}
    for path, tree in TREES.items():
        for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            made = next((f for f in kind.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
            if made is not None:
                count = len(made.args.args) - 1 + len(made.args.kwonlyargs)
            elif any("dataclass" in ast.unparse(d) for d in kind.decorator_list):
                fields = [f for f in kind.body if isinstance(f, ast.AnnAssign)]
                count = len([f for f in fields if not (f.value and "option(" in ast.unparse(f.value))])
            else:
                continue
            if count > 15:
                many[f"{name_of(path)}.{kind.name}"] = count
    assert many == {}


def test_nothing_imports_in_a_circle():
    """Strongly connected components of the modules, by Tarjan's algorithm: each is one module."""
    graph = {name_of(path): imports(path) for path in FILES}
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            circle = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(circle) > 1:
                circles.append(sorted(circle))

    for node in graph:
        if node not in order:
            visit(node)
    assert circles == []


def test_packages_are_not_crowded():
    """What stands side by side reads as a table of contents: the root, the tasks, and every package."""
    counts = {name_of(folder / "__init__.py"): len(list(folder.glob("*.py"))) for folder in {p.parent for p in FILES}}
    assert {name: n for name, n in counts.items() if n > (16 if name in ("", "tasks") else 20)} == {}


def test_no_function_captures_its_locals():
    assert [name_of(path) for path in FILES if "locals()" in path.read_text()] == []

"""A module imports only from those above it in CONTRIBUTING.md's table."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxcls"
TABLE = re.findall(r"^\| (`jaxcls/.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
FRONT_DOORS = {"__init__", "__main__"}  # they hand on what lies behind them


def order() -> list[str]:
    """The files and folders of the table, first to last, as "config" or "training"."""
    entries = re.findall(r"`(?:jaxcls/)?(\w+)(?:\.py|/)`", " ".join(TABLE))
    assert len(entries) == len(set(entries))
    return entries


def imports_of(path: Path) -> Iterator[str]:
    """Every module of jaxcls that a file imports, wherever in the file: "training.step"."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("jaxcls."):
                yield _module(name.removeprefix("jaxcls."))


def _module(name: str) -> str:
    """Cuts the imported object off: training.step.normalize is in training.step."""
    while name and not (PACKAGE / (name.replace(".", "/") + ".py")).is_file():
        name = name.rpartition(".")[0]
    return name or "__init__"


def modules() -> dict[str, set[str]]:
    """Each module with those that it imports."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.stem not in FRONT_DOORS:
            found[name] = set(imports_of(path)) - FRONT_DOORS
    return found


def test_the_table_names_every_file_and_folder() -> None:
    there = {
        path.stem
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file())
        and path.stem not in FRONT_DOORS
    }
    assert set(order()) == there


def test_a_module_imports_only_from_those_above_it() -> None:
    place = {entry: number for number, entry in enumerate(order())}
    upward = [
        f"{module} imports {imported}"
        for module, imports in modules().items()
        for imported in imports
        if place[imported.split(".")[0]] > place[module.split(".")[0]]
    ]
    assert upward == []


def test_modules_import_in_no_circle() -> None:
    graphlib.TopologicalSorter(modules()).prepare()  # raises CycleError


def test_the_imports_are_found() -> None:
    found = modules()
    assert "config" in found["parallel"]
    assert "training.loop" in found["cli"]  # inside a function
    assert "data.sources" in found["training.loop"]

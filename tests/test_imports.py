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
    """Cuts the imported object off: training.step.step_keys is in training.step."""
    while name and not _is_module(name):
        name = name.rpartition(".")[0]
    return name or "__init__"


def _is_module(name: str) -> bool:
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def modules() -> dict[str, set[str]]:
    """Each module with those that it imports."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.parent != PACKAGE or path.stem not in FRONT_DOORS:
            name = name.removesuffix(".__init__")
            found[name] = set(imports_of(path)) - FRONT_DOORS - {name}
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


def test_what_is_made_of_a_network_does_not_import_the_rest_of_that() -> None:
    apart = {"inference", "measure", "pictures"}
    crossing = [
        f"{module} imports {imported}"
        for module, imports in modules().items()
        for imported in imports
        if {module.split(".")[0], imported.split(".")[0]} <= apart
        and module.split(".")[0] != imported.split(".")[0]
    ]
    assert crossing == []


def test_the_top_of_the_package_stays_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_the_imports_are_found() -> None:
    found = modules()
    assert "config" in found["distributed.mesh"]
    assert "config.schema" in found["config"]
    assert "training.loop" in found["commands.train"]  # inside a function
    assert "data.sources" in found["training.step_loop"]

"""The house's rule: our modules import ours at the top of the file and downwards only, without circles."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dataset_conversion", "nnunet_order", "law_synth")  # each stands on those before it
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
# The commands wait with their imports until a Ctrl-C has an answer, and nnunet_order with torch until
# somebody asks for a network.
LAZY = {"nnunet_order.cli", "law_synth.cli", "nnunet_order"}


def imports(tree: ast.AST) -> set[str]:
    """Our modules that the import statements among a node's direct and indirect children name."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {f"{node.module}"}
    return {name for name in names if name in MODULES}


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - LAZY))
def test_own_imports_stand_at_the_top(name):
    tree = TREES[name]
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert imports(tree) == imports(ast.Module(top, [])), "an import of ours is hidden in a block"


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: imports(tree) - {name} for name, tree in TREES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_folder_imports_itself_by_way_of_others():
    """A folder is one floor of the house; files that lie in a package itself are floors of their own."""
    graph: dict[str, set[str]] = {}
    for name, tree in TREES.items():
        graph.setdefault(floor_of(name), set()).update(map(floor_of, imports(tree)))
    try:
        list(TopologicalSorter({name: below - {name} for name, below in graph.items()}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def floor_of(name: str) -> str:
    """Folder of a module, below its package; the module itself where it lies in the package."""
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("name", sorted(MODULES))
def test_packages_import_only_those_below(name):
    floor = PACKAGES.index(name.partition(".")[0])
    above = {one for one in imports(TREES[name]) if PACKAGES.index(one.partition(".")[0]) > floor}
    assert not above

"""The house's rule: our modules import ours at the top of the file and downwards only, without circles."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dataset_conversion", "nnunet_order", "law_synth")  # each stands on those before it
# The commands wait with their imports until a Ctrl-C has an answer, and nnunet_order with torch until
# somebody asks for a network.
LAZY = {"nnunet_order.cli", "law_synth.cli", "nnunet_order"}
TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(tree: ast.AST) -> set[str]:
    """Our modules that the import statements below a node name."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {f"{node.module}"}
    return names & TREES.keys()


def folder(name: str) -> str:
    """A folder is one floor of the house; files that lie in a package itself are floors of their own."""
    return ".".join(name.split(".")[:2])


def test_own_imports_stand_at_the_top():
    for name in TREES.keys() - LAZY:
        top = [node for node in TREES[name].body if isinstance(node, (ast.Import, ast.ImportFrom))]
        hidden = imports(TREES[name]) - imports(ast.Module(top, []))
        assert not hidden, f"{name} imports {hidden} inside a block"


@pytest.mark.parametrize("floor", [str, folder])
def test_nothing_imports_itself_by_way_of_others(floor):
    below: dict[str, set[str]] = {}
    for name, tree in TREES.items():
        below.setdefault(floor(name), set()).update(set(map(floor, imports(tree))) - {floor(name)})
    try:
        list(TopologicalSorter(below).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_packages_import_only_those_below():
    for name, tree in TREES.items():
        allowed = PACKAGES[: PACKAGES.index(name.partition(".")[0]) + 1]
        above = {one for one in imports(tree) if one.partition(".")[0] not in allowed}
        assert not above, f"{name} imports {above}, which stand above it"

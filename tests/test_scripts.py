"""The scripts outside the package import only names that exist."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "scripts", "training")
SCRIPTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))


def is_there(module: str, name: str) -> bool:
    """Whether a module has this attribute or submodule."""
    if hasattr(import_module(module), name):
        return True
    try:
        import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imported_names_exist(script):
    neighbours = {path.stem: path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")}
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        names = [alias.name for alias in node.names]
        if node.module.partition(".")[0] == "text2seg":
            for name in names:
                assert is_there(node.module, name), f"{node.module}.{name}"
        elif node.module in neighbours:
            tree = ast.parse(neighbours[node.module].read_text(encoding="utf-8"))
            defined = {name.id for name in ast.walk(tree) if isinstance(name, ast.Name)}
            defined |= {each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef)}
            defined |= {
                alias.name for each in ast.walk(tree) if isinstance(each, ast.ImportFrom) for alias in each.names
            }
            assert set(names) <= defined, node.module

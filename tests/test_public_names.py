"""Public names: what `from physppl import *` and the API page show, and nothing beside it."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
PACKAGES = re.findall(r"^::: (\S+)$", PAGE.read_text(), flags=re.MULTILINE)


def test_the_page_shows_the_public_packages():
    assert set(PACKAGES) >= {"physppl", "physppl.inference", "physppl.models", "physppl.planning", "physppl.plots"}


@pytest.mark.parametrize("name", [*PACKAGES, "physppl.dynamics"])
def test_a_package_lists_what_it_imports_and_imports_nothing_else(name):
    package = importlib.import_module(name)
    tree = ast.parse(inspect.getsource(package))
    imported = [
        a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names
    ]
    assert sorted(package.__all__) == sorted(imported) == sorted(set(imported))
    starred = {}
    exec(f"from {name} import *", starred)
    assert all(starred[public] is getattr(package, public) for public in package.__all__)


def test_names_of_the_other_packages_are_not_those_of_physppl():
    """A name that two packages export is the same object in both."""
    packages = [importlib.import_module(name) for name in PACKAGES]
    for package in packages:
        for other in packages:
            for public in set(package.__all__) & set(other.__all__):
                assert getattr(package, public) is getattr(other, public), public

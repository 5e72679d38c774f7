"""The library's folders and words: which way imports point, how docstrings open, one word for one thing."""

import ast

import pytest
from modules import HIGHEST, ORDER, folder, graph, imports, modules

CHAIN = 12  # folders of the longest way from one to what it needs
OPENINGS = "Of At In With From By For Whether What".split()  # a docstring's first line can be read alone
TOP = ("", "cli", "__main__")  # these see everything


def test_folders_import_only_folders_above_them():
    for name, others in graph().items():
        here = folder(name)
        if here in TOP:
            continue
        if here in HIGHEST:
            allowed = set(ORDER[: ORDER.index(HIGHEST[here]) + 1])
        else:  # evaluation and planning do not see each other
            allowed = set(ORDER[: ORDER.index(here)]) - ({"evaluation"} if here == "planning" else set())
        for there in {folder(other) for other in others} - {here}:
            assert there in allowed, f"{name} imports from {there or 'physppl itself'}"


def test_every_module_stands_in_a_folder_of_the_order():
    for name in graph():
        assert folder(name) in (*TOP, *HIGHEST, *ORDER), f"{name} stands in a folder without a place"
        assert name.count(".") <= 2, f"{name} stands on a third level"


def test_nothing_imports_folders_by_their_bare_names():
    for name, path in modules().items():
        for other in imports(path):
            assert other.split(".")[0] not in ("models", "inference"), f"{name}: write physppl.{other}"


def longest_chains(edges: dict[str, set[str]]) -> dict[str, int]:
    """{node: nodes on the longest way down from it}; an error names the nodes of a circle."""
    length: dict[str, int] = {}
    path: list[str] = []

    def visit(node: str) -> int:
        assert node not in path, " -> ".join([*path[path.index(node) :], node])
        if node not in length:
            path.append(node)
            length[node] = 1 + max((visit(other) for other in sorted(edges.get(node, ()))), default=0)
            path.pop()
        return length[node]

    for node in edges:
        visit(node)
    return length


def test_modules_form_no_circle():
    assert len(longest_chains(graph())) == len(modules())


def test_folders_form_a_short_chain():
    edges: dict[str, set[str]] = {}
    for name, others in graph().items():
        if (here := folder(name)) not in ("", "__main__"):
            edges.setdefault(here, set()).update(folder(other) for other in others)
            edges[here] -= {"", here}
    assert max(longest_chains(edges).values()) <= CHAIN


def documented():
    """(module, name, docstring or None) of every module, class and function."""
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, getattr(node, "name", path.name), ast.get_docstring(node)


def test_docstrings_open_with_what_can_be_read_alone():
    for module, name, text in documented():
        if text:
            assert text.split()[0].strip(",:;") not in OPENINGS, f"{module}, {name}: {text.splitlines()[0]}"


@pytest.mark.parametrize("package", [name for name, path in modules().items() if path.name == "__init__.py"])
def test_every_folder_says_what_it_is(package):
    assert ast.get_docstring(ast.parse(modules()[package].read_text()))


def test_no_two_classes_share_a_name():
    """Files of saved posteriors name the library's classes by these names alone."""
    places: dict[str, str] = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                assert node.name not in places, f"{node.name} is a class of {places[node.name]} and of {module}"
                places[node.name] = module


def test_functions_are_defined_by_def():
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)
            assert not named, f"{module}, line {node.lineno}: a named lambda"

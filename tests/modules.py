"""The library's modules, their imports of every kind, and the order of its folders, as its source says."""

import ast
from pathlib import Path

root = Path(__file__).parent.parent
layers = {"physppl.models": root / "models", "physppl.inference": root / "inference"}

# A folder imports only folders above it in this list; those without modules are places for what comes.
ORDER = (
    "internal", "data", "language", "dynamics", "density", "posterior", "evaluation", "planning", "policies",
    "control", "contact", "mujoco", "plots", "campaigns", "cli",
)  # fmt: skip
HIGHEST = {"models": "control", "inference": "posterior"}  # the lowest folder of ORDER that these two may import


def modules() -> dict[str, Path]:
    """{module name: file} of the whole library, each file once (the links under physppl/ are the two layers)."""
    files = {}
    for path in (root / "physppl").rglob("*.py"):
        relative = path.relative_to(root)
        if not any((root / part).is_symlink() for part in relative.parents):
            files[".".join(relative.with_suffix("").parts)] = path
    for name, folder in layers.items():
        for path in folder.rglob("*.py"):
            files[".".join((name, *path.relative_to(folder).with_suffix("").parts))] = path
    return {name.removesuffix(".__init__"): path for name, path in files.items()}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, also inside functions and as strings that name a module of the library."""
    names, known = set(), modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; two of the folders are seen through links"
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            names |= {name if name in known else str(node.module) for name in full}
        elif isinstance(node, ast.Constant) and node.value in known and node.value != "physppl":
            names.add(node.value)
    return names


def graph() -> dict[str, set[str]]:
    """{module: modules of the library that it imports}."""
    files = modules()
    return {name: {other for other in imports(path) if other in files} - {name} for name, path in files.items()}


def folder(name: str) -> str:
    """The folder of physppl/ in which a module stands; "" for the top."""
    return name.split(".")[1] if "." in name else ""

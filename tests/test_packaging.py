"""The package as it is installed: its folders, what importing it costs, and which way imports point."""

import subprocess
import sys
import tomllib

from modules import modules, root

settings = tomllib.loads((root / "pyproject.toml").read_text())


def test_every_folder_of_modules_is_a_package_that_is_shipped():
    """A forgotten sub-package would vanish from the wheel without a word."""
    shipped = settings["tool"]["setuptools"]["packages"]
    folders = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(shipped) == folders and len(shipped) == len(folders)
    for name, path in modules().items():
        assert name in folders or name.rpartition(".")[0] in folders, f"{path} stands in no package"
    assert settings["tool"]["setuptools"]["package-dir"] == {
        "physppl": "physppl",
        "physppl.models": "models",
        "physppl.inference": "inference",
    }


def test_the_package_is_typed_and_the_links_are_relative():
    assert (root / "physppl" / "py.typed").is_file()
    assert settings["tool"]["setuptools"]["package-data"]["physppl"] == ["py.typed"]
    for name in ("models", "inference"):
        link = root / "physppl" / name
        if link.is_symlink():  # a checkout without links still works: the mapping takes over
            assert str(link.readlink()) == f"../{name}"


def run(code: str, folder) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_library_loads_no_layer_and_nothing_heavy_that_it_may_not_need(tmp_path):
    out = run(
        "import sys, physppl, jax; print(jax.config.jax_enable_x64); print(*sys.modules)",
        tmp_path,
    )
    precision, loaded = out.split("\n")[:2]
    assert precision == "False"  # the global flag is the user's
    mine = {"physppl.models", "physppl.inference", "physppl.cli"}
    heavy = {
        "arviz",
        "arviz_base",
        "arviz_stats",
        "arviz_plots",
        "matplotlib",
        "pint",
        "pandas",
        "blackjax",
        "gymnasium",
    }
    assert set(loaded.split()) & (mine | heavy | {"tyro", "xarray"}) == set()


def test_the_layers_import_from_any_folder_under_one_name(tmp_path):
    out = run(
        "import physppl.models, physppl.inference, sys; "
        "print(physppl.models.pendulum.__name__, physppl.inference.Laplace.__module__, 'models' in sys.modules)",
        tmp_path,
    )
    assert out.split() == ["physppl.models.pendulum", "physppl.inference.laplace", "False"]


def test_the_version_is_one_number():
    assert f'version = "{settings["project"]["version"]}"' in (root / "pyproject.toml").read_text()
    assert settings["project"]["version"] in (root / "CHANGELOG.md").read_text()

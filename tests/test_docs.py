"""The README and the docs run: every Python block, in order, in one namespace a page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    pytest.param("docs/tutorial.md", marks=pytest.mark.science),  # its blocks are the README's, and more of each
    pytest.param("docs/tutorial/recordings.md", marks=pytest.mark.science),  # a minute of compiling
    "docs/tutorial/drive.md",
    pytest.param("docs/tutorial/acting.md", marks=pytest.mark.science),  # learns a swing-up
    pytest.param("docs/backends.md", marks=pytest.mark.science),  # two neural linear models
    pytest.param("docs/data.md", marks=pytest.mark.science),  # fits of many kinds of files
    "docs/models.md",
    "docs/recordings.md",
    "docs/identify.md",
    pytest.param("docs/comparing.md", marks=pytest.mark.science),  # NumPyro compiles for long
    pytest.param("docs/function_space.md", marks=pytest.mark.science),  # fits of three objectives
    "docs/planning.md",
    pytest.param("docs/saving.md", marks=pytest.mark.science),  # fits, saves and updates
    pytest.param("docs/calibration.md", marks=pytest.mark.science),  # two calibrations
    pytest.param("docs/extending.md", marks=pytest.mark.science),  # fits of own backends
    pytest.param("docs/ensembles.md", marks=pytest.mark.science),  # trains networks
    pytest.param("docs/large_networks.md", marks=pytest.mark.science),  # trains a network
    pytest.param("docs/fleets.md", marks=pytest.mark.science),  # fits of a hierarchy
    pytest.param("docs/gymnasium.md", marks=pytest.mark.science),  # learns a machine
]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, str(ROOT / page), "exec"), namespace)


def test_the_readme_shows_running_code_before_line_25():
    assert "```python" in (ROOT / "README.md").read_text().splitlines()[:24]

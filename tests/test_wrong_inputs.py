"""Wrong inputs: each is refused by the library itself, in a few lines that say what is wrong and what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mistakes.kinds import ALL, KINDS

pytest.importorskip("gymnasium", reason="the [gym] extra is not installed")
LINES = 15


@pytest.fixture(scope="module")
def outcomes():
    """{title: outcome} of all, in a process without the types that are checked in these tests."""
    folder = Path(__file__).parent
    paths = os.pathsep.join([str(folder.parent), str(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "mistakes"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_there_are_a_hundred_of_different_kinds():
    assert len(ALL) == sum(map(len, KINDS.values())) >= 100  # titles are unique


@pytest.mark.parametrize("title", ALL)
def test_it_is_refused_with_the_remedy(outcomes, title):
    found = outcomes[title]
    assert found["error"], "silent"
    assert found["place"] == "physppl" and found["meant"], f"by {found['place']}: {found['error']}: {found['text']}"
    for words in ALL[title].words:
        assert words in found["text"]
    if found["error"] == "ProgramError":  # its first line quotes the user's
        assert ALL[title].words[-1] in found["text"].partition("\n")[2]
    assert found["text"].count("\n") < LINES and "Traced<" not in found["text"]


@pytest.mark.parametrize("title", [mistake.title for mistake in KINDS["Command line"]])
def test_a_command_ends_with_one_line(outcomes, title):
    assert outcomes[title]["error"] == "SystemExit"
    assert outcomes[title]["text"].startswith("physppl") and "\n" not in outcomes[title]["text"]

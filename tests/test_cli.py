"""The command line: the demos in this process, their files read back, and what they say to wrong input."""

import contextlib
import io
import re
import subprocess
import sys
from importlib.metadata import version

import matplotlib.image
import numpy as np
import pytest
import xarray
from PIL import Image

import physppl as pp
from physppl.cli import COMMANDS, learning, main
from physppl.models import furuta as machine

FIGURES = {"swing_up_parameters.png", "returns.png", "fan.png"}
PENDULUM_FIGURES = FIGURES | {"identified.png", "phase_portrait.png"}


def run(out, *arguments: str, baselines: int = learning.BASELINES) -> str:
    """What a demo of one episode prints.

    Its posteriors go unchecked: that compiles long, and has its own tests.
    """
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as text:
        patch.delenv("PHYSPPL_DATA", raising=False)
        patch.setattr(learning, "BASELINES", baselines)
        patch.setattr(pp.Posterior, "check", lambda *_: pp.Check("not checked", (), {}))
        main(["demo", "--out", str(out), "--episodes", "1", *arguments])
    return text.getvalue()


@pytest.fixture(scope="module")
def furuta(tmp_path_factory):
    """(folder, standard output) of the demo."""
    out = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    return out, run(out, baselines=1)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """(folder, standard output) of the pendulum's, on a simulated recording."""
    out = tmp_path_factory.mktemp("demo")
    return out, run(out, "--model", "pendulum", "--seed", "3")


def named(text: str, name: str) -> list[str]:
    """Cells of the one line that begins with a name."""
    [cells] = [line.split() for line in text.splitlines() if line.split()[:1] == [name]]
    return cells


def test_the_demo_learns_a_furuta_with_friction_its_program_lacks(furuta):
    out, text = furuta
    stall = machine.MOTOR_CONSTANT * 6.0 / machine.RESISTANCE  # N m at 6 V
    assert "Dry friction brakes its arm with 0.001 N·m, near standstill 0.002" in text
    assert f"{0.001 / stall * 6:.1f} and {0.002 / stall * 6:.1f} V of the motor's 6" in text
    assert "lies outside its prior" in text and "coulomb" not in text
    assert text.count("compiling") >= 5 and "verdict" in text and str(out) in text
    assert float(named(text, "1")[1]) < float(named(text, "oracle")[1])
    oracle, random = named(text, "oracle"), named(text, "random")
    assert oracle[3] == "1/1" and random[3] == "0/1"
    assert float(oracle[1]) > 180 > 0 > float(random[1])  # at most one per step for 256 steps; random ones leave
    assert named(text, "pendulum_length")[-3] == "0.086"  # 2/3 of the rod's 0.129 m
    assert {line.split()[0] for line in text.splitlines() if line.endswith(("learned", "informed"))} >= {
        "pendulum_mgl", "driven_inertia", "arm_damping", "pendulum_inertia", "process_noise[arm]",
    }  # fmt: skip


@pytest.mark.science
def test_the_pendulum_demo_identifies_and_learns(pendulum):
    out, text = pendulum
    assert "simulated recording" in text and "0.1 N·m of dry friction that the program does not know" in text
    assert "mass 1 kg, length 1 m, damping 0.05 N·m·s/rad, dry friction 0.1 N·m" in text
    assert text.count("compiling") >= 6 and "verdict" in text and str(out) in text
    oracle, random = named(text, "oracle"), named(text, "random")
    assert oracle[3] == "3/3" and random[3] == "0/3"
    assert float(oracle[1]) > 100 > 30 > float(random[1])  # at most one per step for 200 steps
    for name in ("mass", "length", "damping", "process_noise[velocity]"):
        assert text.count(f"\n{name} ") == 2


@pytest.mark.parametrize(
    "demo, figures, posteriors, frames",
    [
        ("furuta", FIGURES, {"swing_up.nc"}, 64),  # 256 steps of 0.01 s at 25 frames a second
        pytest.param(  # 200 of 0.05 s at 10
            "pendulum", PENDULUM_FIGURES, {"identified.nc", "swing_up.nc"}, 100, marks=pytest.mark.science
        ),
    ],
)
def test_the_demo_saves_what_it_lists(demo, figures, posteriors, frames, request):
    out, text = request.getfixturevalue(demo)
    names = {p.name for p in out.iterdir()}
    assert names == figures | posteriors | {"swing_up.gif"}
    assert all(f"  {name} " in text for name in names)
    for name in figures:
        picture = matplotlib.image.imread(out / name)
        assert picture.shape[0] > 400 and picture.shape[1] > 600
        assert len(np.unique(picture.reshape(-1, picture.shape[2])[::7], axis=0)) > 20  # something is drawn
    with Image.open(out / "swing_up.gif") as picture:
        assert picture.n_frames == frames


@pytest.mark.science
@pytest.mark.parametrize("name", ["identified.nc", "swing_up.nc"])
def test_the_demo_saves_posteriors_that_arviz_reads(pendulum, name):
    with xarray.open_datatree(pendulum[0] / name, engine="h5netcdf") as tree:
        posterior = tree["posterior"]
        assert {"mass", "length", "damping", "process_noise"} <= set(posterior.data_vars)
        assert posterior["damping"].attrs["units"] == "N m s/rad"
        assert list(posterior["process_noise"].coords["state"].values) == ["angle", "velocity"]
        assert tree["observed_data"]["next_state"].shape == (200, 2)
        assert np.isfinite(posterior["length"]).all() and abs(float(posterior["length"].mean()) - 1) < 0.1
        assert tree.attrs["backend"] == "Laplace" and tree.attrs["status"] == "OK"


def test_wrong_input_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--episods", "2"])
    assert caught.value.code == 2 and "--episods" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--model", "cartpole"])
    assert caught.value.code == 2 and "furuta" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="episodes must be at least 1; got 0"):
        main(["demo", "--out", str(tmp_path), "--episodes", "0"])
    taken = tmp_path / "taken"
    taken.write_text("a file, not a folder")
    for out in (taken, taken / "below"):
        with pytest.raises(SystemExit, match="cannot write to --out .*taken.* Choose another folder"):
            main(["demo", "--out", str(out)])
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2 and "demo" in capsys.readouterr().err


def test_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "physppl", "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("demo", "identify", "psrl", "psal"))


def test_version_help_and_commands_that_do_not_exist(capsys):
    main(["--version"])
    assert capsys.readouterr().out.strip() == f"physppl {version('physppl')}"
    with pytest.raises(SystemExit):
        main(["help"])
    assert "identify" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["help", "identify"])
    assert "--held-out" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no command 'idntify'. Did you mean identify"):
        main(["idntify"])


def printed(*arguments: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code in (0, None)
    return text.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_short_types_and_describes_every_option(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    text = printed(command, "--help")
    listed = text[text.index(" options ") :]
    for noise in ("None", "(default: )", "[STR", "[PATH", "--no-", "}|"):
        assert noise not in listed, noise
    rows = [line.strip("│| ") for line in listed.splitlines()]  # within a frame or without one
    named = [bool(re.match("--?[a-z]", row)) for row in rows]
    assert sum(named) > 4
    for row, name, next_name in zip(rows, named, [*named[1:], True], strict=True):  # the text beside a name, or below
        assert not name or "  " in row or not next_name, row


def test_the_list_of_commands_has_a_line_of_each(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    for line in (["help"], ["--help"]):
        text = printed(*line)
        assert len(text.splitlines()) < 20 and all(f"• {name} " in text for name in COMMANDS)
    assert "--variation is the sd" in printed("help", "identify")


@pytest.mark.parametrize("line", [[], ["identify"]])
def test_the_shell_completes_every_command(line):
    script = printed(*line, "--tyro-print-completion", "bash")
    assert all(f"'{name}': {{" in script for name in COMMANDS)
    assert "--held-out" in script and "complete -F" in script
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr

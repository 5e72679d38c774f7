"""The command line: the demo in this process, its files read back, and what it says to wrong input."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import xarray
from PIL import Image

from physppl.cli import main

FIGURES = ("identified.png", "fan.png", "swing_up_parameters.png", "returns.png", "phase_portrait.png")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, standard output) of a demo of one episode on a simulated recording."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as text:
        patch.delenv("PHYSPPL_DATA", raising=False)
        main(["demo", "--out", str(out), "--episodes", "1", "--seed", "3"])
    return out, text.getvalue()


def test_demo_narrates(demo):
    out, text = demo
    assert "simulated recording" in text and "0.1 N·m of dry friction that the program does not know" in text
    assert "mass 1 kg, length 1 m, damping 0.05 N·m·s/rad, dry friction 0.1 N·m" in text
    assert text.count("compiling") >= 6 and "verdict" in text and str(out) in text
    rows = {line.split("  ")[0].strip(): line.split() for line in text.splitlines()}
    [oracle] = [line.split() for line in text.splitlines() if line.strip().startswith("oracle")]
    [random] = [line.split() for line in text.splitlines() if line.strip().startswith("random")]
    assert oracle[3] == "3/3" and random[3] == "0/3"
    assert float(oracle[2]) > 100 > 30 > float(random[2])  # at most one per step for 200 steps
    assert {"mass", "length", "damping", "process_noise[velocity]"} <= set(rows)


def test_demo_saves_every_figure(demo):
    out, _ = demo
    assert {p.name for p in out.iterdir()} == {*FIGURES, "swing_up.gif", "identified.nc", "swing_up.nc"}
    for name in FIGURES:
        picture = matplotlib.image.imread(out / name)
        assert picture.shape[0] > 400 and picture.shape[1] > 600
        assert len(np.unique(picture.reshape(-1, picture.shape[2])[::7], axis=0)) > 20  # something is drawn
    with Image.open(out / "swing_up.gif") as picture:
        assert picture.n_frames == 100  # 200 steps of 0.05 s at 10 frames a second


def test_demo_saves_posteriors_that_arviz_reads(demo):
    out, _ = demo
    for name, rows in (("identified.nc", 200), ("swing_up.nc", 200)):
        with xarray.open_datatree(out / name, engine="h5netcdf") as tree:
            posterior = tree["posterior"]
            assert {"mass", "length", "damping", "process_noise"} <= set(posterior.data_vars)
            assert posterior["damping"].attrs["units"] == "N m s/rad"
            assert list(posterior["process_noise"].coords["state"].values) == ["angle", "velocity"]
            assert tree["observed_data"]["next_state"].shape == (rows, 2)
            assert np.isfinite(posterior["length"]).all() and abs(float(posterior["length"].mean()) - 1) < 0.1
            assert tree.attrs["backend"] == "Laplace" and tree.attrs["status"] == "OK"


def test_wrong_input_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--episods", "2"])
    assert caught.value.code == 2 and "--episods" in capsys.readouterr().err
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
    assert "demo" in done.stdout

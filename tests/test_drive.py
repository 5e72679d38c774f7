"""The tutorial of the drive, followed to the letter on files of a simulated one."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from physppl.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "tutorial" / "drive.md"
TRUTH = {
    "motor_inertia": 3e-4, "load_inertia": 6e-4, "stiffness": 1.2, "shaft_damping": 3e-3, "viscous": 4e-3,
    "coulomb": 0.02,
}  # fmt: skip
DT, TORQUE, COUNT = 0.002, 0.05, 2 * np.pi / 4096


def log(path: Path, phase: float, start: float, rows: int = 2000, finer: int = 20) -> None:
    """A chirp that began .2 s before the log, two samples late; 25 readings are lost."""
    times, (low, high), whole = DT * np.arange(rows), (0.5, 25.0), DT * rows
    turned = 2 * np.pi * low * whole / np.log(high / low) * ((high / low) ** (times / whole) - 1)
    volts = 6.0 * np.cos(turned + phase)
    p = TRUTH

    def rates(x, u):
        motor, load, speed, load_speed = x
        shaft = p["stiffness"] * (motor - load) + p["shaft_damping"] * (speed - load_speed)
        friction = p["viscous"] * speed + p["coulomb"] * np.tanh(speed / 0.02)
        return np.array(
            [speed, load_speed, (TORQUE * u - friction - shaft) / p["motor_inertia"], shaft / p["load_inertia"]]
        )

    x, counts, h = np.array([start, start, 0.0, 0.0]), [], DT / finer
    for k in range(-100, rows):
        if k >= 0:
            counts.append(round(x[0] / COUNT))
        u = volts[max(k - 2, 0)]
        for _ in range(finer):
            a = rates(x, u)
            b = rates(x + h / 2 * a, u)
            c = rates(x + h / 2 * b, u)
            x = x + h / 6 * (a + 2 * b + 2 * c + rates(x + h * c, u))
    lost = range(rows // 3, rows // 3 + 25)
    lines = [f"{t:.3f};{'' if k in lost else counts[k]};{volts[k]:.4f}" for k, t in enumerate(times)]
    path.write_text("\n".join(["time;count;volts", *lines, ""]))


@pytest.mark.science
def test_the_drive_is_identified_as_the_tutorial_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    Path("drive.py").write_text(re.search(r"^```python\n(.*?)^```$", text, flags=re.M | re.S).group(1))
    log(Path("a.csv"), phase=0.3, start=0.07)
    log(Path("b.csv"), phase=0.6, start=-1.43)
    command = re.search(r"^```bash\nphysppl (.*?)^```$", text, flags=re.M | re.S).group(1).replace("\\\n", " ")
    main(shlex.split(command))
    found = json.loads(Path("out/identified.json").read_text())
    assert found["verdict"] == "ok"
    for name, value in TRUTH.items():
        row = found["parameters"][name]
        assert abs(row["mean"] - value) < 3 * row["sd"], name
    assert [row["horizon"] for row in found["held_out"]] == [0.04, 0.2]
    assert max(row["rmse"] for row in found["held_out"]) < 0.003

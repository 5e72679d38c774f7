"""`physppl psrl` and `psal` of a program file: what it defines, what it may leave out, what is said of the rest."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

import physppl as pp
from physppl.cli import loop, main
from physppl.cli.program_file import dynamics_file, learning_file

PAGE = Path(__file__).parents[1] / "docs" / "planning.md"
[SLED] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
SYSTEM = """
class Rig(pp.HostSystem):
    def __init__(self):
        self._steps = 0
    def reset(self, seed):
        return [[0.0, 0.0]]
    def step(self, actions):
        return [[0.01 * float(actions[0, 0]), 0.0]]
"""
OPTIONS = ["--horizon", "5", "--population", "16", "--iterations", "1"]


def without(*names: str) -> str:
    """The page's file without the lines that define these names."""
    return "\n".join(line for line in SLED.splitlines() if line.split(" = ")[0] not in names)


@pytest.fixture
def sled(tmp_path, monkeypatch):
    """(text) -> the file of that text in the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = Path("sled.py")
        path.write_text(text)
        return path

    return write


def run(*line) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        main([*map(str, line)])
    return text.getvalue()


def refused(*line) -> str:
    with pytest.raises(SystemExit) as caught:
        run(*line)
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    return caught.value.code


@pytest.mark.science
def test_the_sled_of_the_page_is_learned(sled, monkeypatch):
    results = []  # its figures and files are those of every run
    monkeypatch.setattr(loop, "_results", lambda *arguments: results.append(arguments))
    text = run("psrl", "--program", sled(SLED), "--episodes", 1, *OPTIONS)
    assert "psrl sled.py: state position [m], speed [m/s]; action force [N]; 40 steps of 0.05 s" in text
    assert "To learn: mass, stiffness, damping, and the process noise." in text
    [(learned, problem, out)] = results
    assert float(learned.posterior.mean().sites["mass"]) == pytest.approx(problem.truth["mass"], rel=0.05)
    assert out == Path("runs/psrl_sled") and (out / "episode_0001.npz").exists()
    Path("sled.py").rename("other.py")
    told = refused("psrl", "--program", "other.py", "--episodes", 1, *OPTIONS, "--out", out)
    assert "program is other.py, was sled.py" in told


def test_hardware_is_explored_without_a_task_or_a_truth(sled, monkeypatch):
    told = []
    monkeypatch.setattr(pp, "psrl", lambda *arguments, **options: told.append((arguments, options)))
    monkeypatch.setattr(loop, "_results", lambda *arguments: told.append(arguments))
    file = without("task", "truth", "initial_state") + SYSTEM + "\nsystem = Rig  # made when it is needed\n"
    text = run("psal", "--program", sled(file))
    assert "200 steps of 0.05 s" in text and "Drive and sensors" not in text
    ((_, system, task, *_), options), (_, problem, _) = told
    assert isinstance(system, pp.HostSystem) and task.steps == 200 and problem.truth == {}
    assert options["objective"] == pp.InformationGain()


def test_a_file_and_options_make_the_machine(sled):
    path = sled(SLED)
    problem = learning_file(path, "psrl", truth={"mass": 2.0}, actuator={"delay": 1})
    system = problem.system
    assert isinstance(system, pp.SimulatedSystem) and system.actuator.delay == 1
    assert problem.truth == pytest.approx({"mass": 2.0, "stiffness": 15.0, "damping": 0.8})
    assert np.allclose(system.transition.noise, 1e-3) and not np.any(system.measurement_sd)
    assert problem.dynamics.state == dynamics_file(path).state and problem.task.steps == 40
    quiet = learning_file(sled(SLED.replace(', "process_noise": 1e-3', "")), "psrl").system
    assert np.allclose(quiet.measurement_sd, [1e-3, 1e-2])  # 1 % of the scales


def test_a_simulated_system_of_the_file_takes_the_options(sled):
    made = "system = pp.SimulatedSystem(dynamics.transition(truth), [0.1, 0.0], measurement_sd=0.5)\n"
    problem = learning_file(sled(SLED + made), "psrl", truth={"mass": 3.0})
    assert problem.truth["mass"] == 3.0 and np.allclose(problem.system.measurement_sd, 0.5)
    assert np.allclose(problem.system.initial_state, [0.1, 0.0])
    louder = learning_file(Path("sled.py"), "psrl", measurement_noise=0.7)
    assert np.allclose(louder.system.measurement_sd, 0.7)


LACKS = [
    (without("dynamics"), [], r"sled\.py must define dynamics = physppl\.Dynamics\("),
    (without("task"), [], r"sled\.py must define task = physppl\.Task\(lambda .*steps=200\), which rewards position"),
    (SLED + "task = 3\n", [], "it has a `task` of type int"),
    (without("truth"), [], r'sled\.py has no `system`, .*lacks: truth = \{"mass": [\d.]+, "stiffness": .*HostSystem'),
    (without("initial_state"), [], r"it lacks: initial_state = \[0\.0, 0\.0\] \(of position, speed\)"),
    (SLED + "system = 3\n", [], "must define system = MyMachine.*it has a `system` of type int"),
    (SLED.replace('"mass": 1.2', '"mas": 1.2'), [], "no site 'mas'|'mas'"),
    (SLED + SYSTEM + "system = Rig\ntruth = {'mas': 1.0}\n", [], "truth has no site 'mas'. Did you mean 'mass'"),
    (SLED + SYSTEM + "system = Rig\n", ["--delay", "1"], "do not change its system, a Rig. Leave out --truth"),
    (SLED, ["--hold", "mass=1"], "--hold is for the included models; in sled.py write the value in the place"),
    (SLED, ["--dt", "0.1"], "--dt is for the included models; in sled.py dt is an argument of its dynamics"),
    (SLED, ["--truth", "mas=1"], "'mas'"),
    (SLED.replace('"mass", 0.1', '"mass", nothing'), [], r"sled\.py, line 10, in sled: .*NameError: name 'nothing'"),
    (without("truth") + SYSTEM.replace("[[0.0, 0.0]]", "[0.0], {}") + "system = Rig\n", [], "Rig.reset must return"),
]  # fmt: skip


@pytest.mark.parametrize("text, options, message", LACKS, ids=map(str, range(len(LACKS))))
def test_what_a_file_lacks_is_named_with_the_line_to_add(sled, text, options, message):
    told = refused("psrl", "--program", sled(text), *options, "--out", "out")
    assert re.search(message, told), told


def test_a_model_or_a_program_is_needed(sled):
    assert "give either a model, one of cartpole" in refused("psrl")
    assert "give either a model" in refused("psal", "pendulum", "--program", sled(SLED))
    assert "there is no program file nowhere.py" in refused("psrl", "--program", "nowhere.py")

"""The commands `physppl psrl` and `physppl psal`: what they print and keep, how they go on, what they refuse."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
import xarray
from PIL import Image

import physppl as pp
from physppl.cli import acting, loop, main
from physppl.models import furuta, pendulum, quanser_cartpole, two_link
from physppl.planning import ICEM, MPPI, GradientShooting, RandomShooting

TINY = ["--horizon", "8", "--population", "32", "--iterations", "1"]
TOLD = ["psrl", "pendulum", "--truth", "coulomb=0.1", "--dead-band", "0.05", "--seed", "5", *TINY]


def printed(arguments) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        main([*map(str, arguments)])
    return text.getvalue()


def rows(text: str) -> dict[int, list[str]]:
    """{number: cells} of the table of episodes."""
    _, _, table = text.partition("episode    return")
    cells = [line.split() for line in table.splitlines()[1:]]
    return {int(c[0]): c for c in cells[: next((i for i, c in enumerate(cells) if not c), len(cells))]}


def kept(out, number: int) -> dict[str, np.ndarray]:
    """An episode as the folder has it, without what depends on the clock; 32 bytes of checksum come first."""
    content = (out / f"episode_{number:04d}.npz").read_bytes()[32:]
    with np.load(io.BytesIO(content)) as arrays:
        return {name: arrays[name] for name in arrays if not name.startswith("seconds")}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """(folder, output) of two episodes."""
    out = tmp_path_factory.mktemp("psrl") / "made" / "by it"
    return out, printed([*TOLD, "--episodes", 2, "--out", out])


def test_psrl_says_what_it_does_and_what_it_found(learned):
    out, text = learned
    head, _, rest = text.partition("episode    return")
    assert "state angle [rad], velocity [rad/s]; action torque [N·m]; 200 steps of 0.05 s" in head
    assert "To learn: mass, length, damping, and the process noise." in head
    assert "coulomb is 0.1, not 0" in head and "dead band 0.05" in head and f"kept in {out}" in head
    assert "ICEM: 256 model evaluations" in head  # 8 x 32 x 1
    table = rows(text)
    assert list(table) == [1, 2]
    for number, cells in table.items():
        assert float(cells[1]) == pytest.approx(kept(out, number)["rewards"].sum(), abs=0.006)
        assert cells[3] in ("yes", "no") and all(float(c) >= 0 for c in cells[5:])
    assert float(table[2][2]) == max(float(c[1]) for c in table.values())
    assert float(table[1][4]) > 3  # nats: of a prior, an episode leaves little
    [mass] = [line.split() for line in rest.splitlines() if line.startswith("mass")]
    assert mass[7] == "1" and mass[8] in ("yes", "no")  # the truth, and whether the interval has it
    assert "check of the posterior:" in rest


def test_psrl_saves_what_it_lists(learned):
    out, text = learned
    assert set(loop.FILES) <= {p.name for p in out.iterdir()}
    assert all(f"  {name} " in text for name in loop.FILES)
    for name in ("parameters.png", "returns.png"):
        picture = matplotlib.image.imread(out / name)
        assert len(np.unique(picture.reshape(-1, picture.shape[2])[::7], axis=0)) > 20  # something is drawn
    with Image.open(out / "last_episode.gif") as picture:
        assert picture.n_frames == 100  # every second one of 200 steps
    with xarray.open_datatree(out / "posterior.nc", engine="h5netcdf") as tree:
        assert tree["observed_data"]["next_state"].shape == (400, 2)
        assert tree["posterior"]["length"].attrs["units"] == "m"


def test_more_episodes_go_on_after_those_that_are_there(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_results", lambda *_: None)  # the same as of the first two
    out, before = learned
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (*out.glob("*.npz"), *out.glob("*.json")):
        (copy / path.name).write_bytes(path.read_bytes())
    after = printed([*TOLD, "--episodes", 3, "--out", copy])
    assert f"Found 2 episodes of this run in {copy}" in after
    assert list(rows(after)) == [1, 2, 3]
    assert [rows(after)[i][:5] for i in (1, 2)] == [rows(before)[i][:5] for i in (1, 2)]
    assert not np.array_equal(kept(copy, 3)["states"], kept(copy, 2)["states"])


@pytest.mark.science
def test_a_command_killed_after_every_episode_plays_what_one_that_was_not_plays(learned, tmp_path):
    whole, text = learned

    def killed_after(episode: int, hash_seed: str) -> str:
        """What a process prints that is killed as soon as it has told of an episode."""
        command = [sys.executable, "-m", "physppl", *TOLD, "--episodes", "2", "--out", str(tmp_path)]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}  # the order of a set is no part of what a loop is told
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.split()[:1] == [str(episode)]:
                break
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        return "".join(seen)

    killed_after(1, "1")
    assert (tmp_path / "episode_0001.npz").exists() and not (tmp_path / "posterior.nc").exists()
    again = killed_after(2, "2")
    assert f" of this run in {tmp_path}; the table begins there." in again
    for number in (1, 2):
        assert rows(again)[number][:5] == rows(text)[number][:5]  # nats as well, so the last belief is the same
        ours, theirs = kept(tmp_path, number), kept(whole, number)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_an_interrupted_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupt(*_, checkpoints, **__):
        (checkpoints / "episode_0001.npz").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(pp, "psrl", interrupt)
    with pytest.raises(SystemExit) as caught:
        main(["psal", "pendulum", "--out", str(tmp_path)])
    assert caught.value.code == 130
    assert f"Stopped with 1 episode in {tmp_path}. The same command goes on." in capsys.readouterr().out


class Told(Exception):
    """What the loop was told."""


@pytest.fixture
def told(monkeypatch, tmp_path):
    """(command line) -> the loop's (arguments, options), without running it."""

    def stop(*arguments, **options):
        raise Told(arguments, options)

    monkeypatch.setattr(pp, "psrl", stop)

    def run(*line):
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(Told) as caught:
            main([*map(str, line), "--out", str(tmp_path / "out")])
        return caught.value.args

    return run


def test_options_reach_the_loop(told):
    arguments, options = told("psrl", "furuta", "--dt", 0.02, "--episodes", 7, "--acquisition", "mean", "--every", 4)
    _, system, task, dynamics, _, planner, episodes = arguments
    assert episodes == 7 and planner == ICEM(horizon=40) and task == furuta.swing_up(0.02)
    assert dynamics == furuta.dynamics(dt=0.02) and system.actuator is None
    assert np.all(system.measurement_sd == np.float32(0.01))
    assert options["objective"] == pp.TaskReward() and options["acquisition"] == pp.PosteriorMean(4)


def test_psal_plans_for_information(told):
    assert told("psal", "two_link")[1]["objective"] == pp.InformationGain()


def test_psal_may_sum_over_steps(told):
    arguments, options = told("psal", "two_link", "--step-sum", "--every", 10)
    assert options["objective"] == pp.InformationGain(joint=False) and options["acquisition"] == pp.Thompson(10)
    _, system, task, dynamics, *_ = arguments
    assert task == two_link.reach(0.02) and float(system.transition.sites["gravity"]) == 0.0
    assert dynamics == two_link.dynamics(two_link.program_with(gravity=0.0), dt=0.02)


@pytest.mark.parametrize(
    "line, expected",
    [
        (["--population", 50], ICEM(40, 50, elites=5, keep=5)),
        (["--planner", "mppi", "--horizon", 9, "--population", 50, "--iterations", 2], MPPI(9, 50, 2)),
        (["--planner", "gradient", "--population", 3, "--iterations", 2], GradientShooting(40, 3, 2)),
        (["--planner", "random", "--population", 70], RandomShooting(40, 70)),
    ],
    ids=["icem", "mppi", "gradient", "random"],
)
def test_planners_by_name(told, line, expected):
    assert told("psrl", "pendulum", *line)[0][5] == expected


def test_a_drive_with_flaws(told):
    (_, system, *_), _ = told("psrl", "quanser_cartpole", "--dead-band", 0.3, "--delay", 2, "--lag", 0.02)
    assert float(system.actuator.dead_band) == np.float32(0.3)
    assert (system.actuator.delay, system.actuator.lag) == (2, 0.02)


def test_a_machine_knows_truths_and_what_its_program_has_wrong():
    chosen = acting.machine(
        "furuta", 0.01, truth={"arm_coulomb": 1e-3, "arm_breakaway": 2e-3}, hold={"arm_coulomb": 0.0}
    )
    assert chosen.unknown.keys() == {"arm_coulomb", "arm_breakaway"}
    assert chosen.unknown["arm_breakaway"] == pytest.approx((2e-3, 0.0))
    assert "arm_coulomb" not in chosen.truth and chosen.truth["arm_damping"] == pytest.approx(5e-4)
    # m l^2 / 3 of a uniform rod: derived quantities of the program have truths as well
    rod = furuta.PENDULUM_MASS * furuta.PENDULUM_LENGTH**2 / 3
    assert chosen.truth["pendulum_inertia"] == pytest.approx(rod, rel=1e-5)
    assert acting.machine("pendulum").unknown == {} and np.all(acting.machine("pendulum").system.measurement_sd == 0)
    known = acting.machine("quanser_cartpole", hold={"cart_damping": 5.4, "pole_coulomb": 0.0})
    assert known.unknown == {} and known.truth.keys() >= {"driven_mass", "total_mass"}
    assert known.task == quanser_cartpole.swing_up(0.01)


@pytest.mark.parametrize("name", acting.MACHINES)
def test_every_machine_with_a_task_can_be_acted_on(name):
    chosen = acting.machine(name)
    state, key = chosen.system.initial_state, jnp.zeros(len(chosen.dynamics.action))
    assert chosen.system.transition.dynamics.dt == chosen.dynamics.dt
    assert np.isfinite(chosen.task.stage(chosen.system.transition(state, key), key))
    assert name in acting.ANIMATIONS


@pytest.mark.parametrize(
    "line, message",
    [
        (["psrl", "furutta"], "no machine 'furutta' with a task. Did you mean 'furuta'"),
        (["psrl", "double_pendulum"], "no machine 'double_pendulum' with a task"),
        (["psrl", "furuta", "--truth", "arm_coulmb=1"], "no parameter 'arm_coulmb'. Did you mean 'arm_coulomb'"),
        (["psrl", "furuta", "--truth", "noise=1"], "furuta has no parameter 'noise'"),
        (["psrl", "furuta", "--hold", "arm_coulmb=1"], "no parameter 'arm_coulmb'"),
        (["psrl", "furuta", "--truth", "arm_coulomb"], "--truth takes name=number"),
        (["psrl", "furuta", "--truth", "width=1", "width=2"], "--truth has width twice"),
        (["psal", "gym_pendulum", "--truth", "mass=2"], "gym_pendulum has no parameters that can be changed"),
        (["psal", "gym_pendulum", "--hold", "mass=2"], "has no parameters that can be held"),
        (["psrl", "pendulum", "--dt", "0.1"], "the task of pendulum is in steps of 0.05 s; got 0.1"),
        (["psrl", "furuta", "--dt", "-0.1"], "--dt must be seconds, more than 0"),
        (["psrl", "pendulum", "--episodes", "0"], "--episodes must be at least 1; got 0"),
        (["psrl", "pendulum", "--every", "0"], "every must be at least 1"),
        (["psrl", "pendulum", "--delay", "-1"], "delay must be a whole number"),
        (["psrl", "pendulum", "--dead-band", "-1"], "--dead-band must not be negative"),
        (["psrl", "pendulum", "--planner", "random", "--iterations", "2"], "random shooting refines nothing"),
        (["psrl", "pendulum", "--horizon", "0"], "horizon"),
    ],
)
def test_wrong_input_is_refused_in_one_line(line, message, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=f"^physppl {line[0]}: [^\n]*$") as caught:
        main([*line, "--out", str(out)])
    assert message in str(caught.value)
    assert not out.exists()


def test_the_folder_of_another_run_is_refused(learned, tmp_path):
    out, _ = learned
    before = {p: p.read_bytes() for p in out.iterdir()}
    for line, message in (
        ([*TOLD, "--seed", "6"], "seed is 6, was 5"),
        (["psal", *TOLD[1:]], "command is psal, was psrl"),
        ([*TOLD, "--planner", "mppi"], "planner is mppi, was icem"),
    ):
        with pytest.raises(SystemExit, match=f"holds another run: .*{message}.*another --out") as caught:
            main([*line, "--out", str(out)])
        assert "\n" not in str(caught.value)
    assert before == {p: p.read_bytes() for p in out.iterdir()}
    # Options that say the same of a loop that was another: its own fingerprints tell.
    for name in ("loop.json", "options.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    told = json.loads((tmp_path / "loop.json").read_text())
    (tmp_path / "loop.json").write_text(json.dumps(told | {"task": "another"}))
    with pytest.raises(SystemExit, match="holds the episodes of another loop: task differs"):
        printed([*TOLD, "--out", str(tmp_path)])


def test_true_and_false_are_numbers():
    chosen = acting.machine("furuta", truth=loop.numbers(["as_published=true"], "truth"))
    assert chosen.system == furuta.system(as_published=True, measurement_sd=0.01)
    assert loop.numbers(["a=false", "b=-1e-3"], "truth") == {"a": 0.0, "b": -1e-3}
    assert acting.machine("pendulum").dynamics == pendulum.dynamics()

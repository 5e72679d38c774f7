"""Figures: what they show against independent numbers, units on every axis, nothing clipped, nothing overlapping."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import linear_data, linear_dynamics, recording
from PIL import Image

import physppl as pp
from physppl import plots
from physppl.evaluation.recording_forecasts import Ahead
from physppl.inference import Laplace
from physppl.internal import figures
from physppl.models import furuta, pendulum
from physppl.planning import RandomPolicy
from physppl.plots import loops, machines
from physppl.posterior import fit_tests
from physppl.posterior.innovations import innovations

TRUTH = {"mass": 0.9, "length": 1.1, "damping": 0.08}
BOUNDS = {"mass": (0.2, 2.0), "length": (0.3, 1.8), "damping": (0.0, 0.2)}


def program():
    """A pendulum with priors of its own, so that the numbers below stay what they are."""
    units = {"mass": "kg", "length": "m", "damping": "N m s/rad"}
    return pendulum.field(*(pp.physical(name, *BOUNDS[name], unit=units[name]) for name in BOUNDS))


@pytest.fixture(scope="module")
def data():
    return recording(pendulum.dynamics(), TRUTH, steps=200, noise=0.005)


@pytest.fixture(scope="module")
def posterior(data):
    return pp.fit(jax.random.key(0), pendulum.dynamics(program), data, Laplace())


@pytest.fixture(scope="module")
def linear():
    return pp.fit(jax.random.key(0), linear_dynamics(), linear_data(), Laplace())


def texts(figure):
    """Every visible, non-empty text and its box in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    hidden = {id(text) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in out_of_view(axis)}
    found = []
    for artist in figure.findobj(Text):
        if artist.get_visible() and artist.get_text().strip() and id(artist) not in hidden:
            found.append((artist.get_text(), artist.get_window_extent(renderer)))
    return found


def out_of_view(axis):
    """Labels of ticks that an axis has made but does not draw."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        if not (low - slack <= tick.get_loc() <= high + slack) or not axis.get_visible():
            yield from (tick.label1, tick.label2)


def assert_legible(figure):
    """All text lies inside the figure and no two texts overlap; none is smaller than 8 points."""
    from matplotlib.text import Text

    found = texts(figure)
    width, height = figure.canvas.get_width_height()
    assert len(found) > 5
    for text, box in found:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, f"{text!r} is clipped"
    for (a, first), (b, second) in itertools.combinations(found, 2):
        overlap = (
            min(first.x1, second.x1) - max(first.x0, second.x0),
            min(first.y1, second.y1) - max(first.y0, second.y0),
        )
        assert min(overlap) <= 1, f"{a!r} and {b!r} overlap"
    assert min(t.get_fontsize() for t in figure.findobj(Text) if t.get_text()) >= 6  # exponents of tick labels


def labels(figure):
    return {axis.get_xlabel() for axis in figure.axes} | {axis.get_ylabel() for axis in figure.axes}


def test_importing_loads_no_matplotlib():
    modules = "physppl, physppl.plots, physppl.plots.machines, physppl.posterior.summary, physppl.evaluation.benchmarks"
    code = f"import sys, {modules}; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parameters_show_densities_with_units(posterior):
    figure = plots.parameters(posterior, truth=TRUTH)
    assert labels(figure) - {""} == {
        "mass [kg]", "length [m]", "damping [N·m·s/rad]",
        "process noise, angle [rad]", "process noise, velocity [rad/s]",
    }  # fmt: skip
    assert_legible(figure)
    draws = posterior.samples(jax.random.key(8), 4000)
    for axis, name in zip(figure.axes, TRUTH, strict=False):
        prior, belief, truth = axis.get_lines()
        assert truth.get_xdata()[0] == TRUTH[name]
        x, density = belief.get_data()
        mean = np.trapezoid(x * density, x) / np.trapezoid(density, x)
        sd = np.sqrt(np.trapezoid((x - mean) ** 2 * density, x) / np.trapezoid(density, x))
        theirs = np.asarray(draws[name])
        assert abs(mean - theirs.mean()) < 4 * theirs.std() * np.sqrt(2 / 4000)
        assert sd == pytest.approx(theirs.std(), rel=0.1)  # the kernel widens by (1.3 x 0.19)^2 / 2 = 3 %
        assert axis.get_xlim() == pytest.approx(BOUNDS[name], abs=1e-6)
        assert prior.get_ydata().max() == pytest.approx(1.0) and np.isfinite(prior.get_ydata()).all()


def test_innovations_show_lags_and_coverage(posterior):
    horizons = (1, 2, 5)
    figure = plots.innovations(posterior, horizons=horizons)
    assert_legible(figure)
    assert {"angle [sd]", "velocity [sd]", "transitions", "lag [transitions]", "steps ahead"} <= labels(figure)
    titles = [title for axis in figure.axes if (title := axis.get_title(loc="left"))]
    assert titles == ["innovations", "density", "autocorrelation", "correlation with torque", "coverage"]
    found = innovations(posterior)
    course, _, auto, _, coverage = figure.axes[:5]
    np.testing.assert_allclose(
        course.get_lines()[0].get_ydata(), np.clip(found.errors[0, found.seen[0, :, 0], 0], -5, 5)
    )
    e = found.errors[0, found.seen[0, :, 0], 0]
    first = auto.collections[1].get_segments()[0][1, 1]
    assert first == pytest.approx(np.corrcoef(e[1:], e[:-1])[0, 1], abs=0.02)
    half, most = (np.asarray(line.get_ydata()) for line in coverage.get_lines()[1::2])
    assert np.all(np.abs(half - 0.5) < 0.15) and np.all(np.abs(most - 0.9) < 0.08)
    with pytest.raises(ValueError, match="no unbroken window of 9999 steps"):
        plots.innovations(posterior, horizons=[9999])


def test_innovations_name_machines_and_inputs():
    """Of a fleet, whose model is a function around one Dynamics with two inputs."""
    state, push = pp.StateSpace(level=pp.Real("m")), pp.Bounded(-1.0, 1.0)
    action = pp.ActionSpace(valve=push, main_pump=push)
    rng = np.random.default_rng(0)
    parts = [
        pp.Transitions(rng.normal(size=(n, 1)), rng.uniform(-1, 1, (n, 2)), rng.normal(size=(n, 1))) for n in (30, 40)
    ]

    def tank():
        gain = pp.physical("gain", dist.Normal(0.0, 1.0))
        return pp.Step(lambda t, x, u: x + gain * u[:1])

    def model(data):
        with numpyro.plate("tank", 2):
            pp.Dynamics(tank, state, action, dt=0.1, process_noise=1.0)(data)

    fleet = pp.fit(jax.random.key(0), model, pp.Transitions.stack(parts), Laplace())
    figure = plots.innovations(fleet)
    assert_legible(figure)
    assert labels(figure) == {"", "level [sd]", "transitions", "lag [transitions]"}
    assert {"tank 0", "tank 1", "valve", "main pump", "correlation with inputs"} <= {text for text, _ in texts(figure)}
    found = innovations(fleet)
    assert found.inputs is not None
    valve = figure.axes[3].collections[1].get_segments()
    values, pairs = fit_tests.cross_correlation(found, found.inputs[..., 0], range(len(valve)))
    np.testing.assert_allclose([stem[1, 1] for stem in valve], values[:, 0])
    band = figure.axes[3].collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(1.96 / np.sqrt(pairs.min()))
    with pytest.raises(TypeError, match=r"coverage is measured on forecasts of one Dynamics.*posterior\.machine\(0\)"):
        plots.innovations(fleet, horizons=(1,))


def test_a_band_that_cannot_be_seen_is_shown_about_zero():
    """The arm's intervals are a 200th of its motion in one of two recordings, the pendulum's a tenth."""
    rng, times = np.random.default_rng(0), 0.02 * np.arange(150)
    ahead, recorded = [], []
    for thin in (0.003, 0.05):
        mean, sd = np.stack([np.sin(3 * times), np.cos(2 * times)], axis=1), np.full((150, 2), [thin, 0.06])
        readings = mean + sd * rng.normal(size=mean.shape)
        ahead.append(Ahead(0.1, 0.0, times, readings, mean, sd, mean, mean))
        recorded.append(pp.Trajectories(readings, rng.normal(size=(150, 1)), times=times))
    dynamics = furuta.dynamics(sensors=("arm", "pendulum"))
    figure = plots.prediction(ahead, recorded, dynamics, ["first", "second"])
    assert_legible(figure)
    names = [name for axis in figure.axes if (name := axis.get_ylabel())]
    assert names == ["arm [rad]", "error [rad]", "pendulum [rad]", "voltage [V]"]
    for forecast, axis in zip(ahead, figure.axes[2:4], strict=True):
        zero, errors = (np.asarray(line.get_ydata()) for line in axis.get_lines())
        assert not zero.any()
        np.testing.assert_allclose(errors, forecast.readings[:, 0] - forecast.mean[:, 0])
        _, low, high = bands(axis)[0]
        np.testing.assert_allclose(high, 1.6448536 * forecast.sd[:, 0], rtol=1e-6)
        np.testing.assert_allclose(low, -high)
        assert axis.get_shared_x_axes().joined(axis, figure.axes[0 if forecast is ahead[0] else 1])
    wide = plots.prediction(ahead[1:], recorded[1:], dynamics, ["second"])
    assert [axis.get_ylabel() for axis in wide.axes] == ["arm [rad]", "pendulum [rad]", "voltage [V]"]


def test_parameters_refuse_a_model_of_weights_only():
    def weights():
        residual = pp.residual("residual", pendulum.state, pendulum.action, width=8)
        return pp.Step(lambda t, x, u: x + residual(x, u))

    prior = Laplace().prior(jax.random.key(0), pendulum.dynamics(weights, process_noise=0.1))
    with pytest.raises(ValueError, match="no scalar site"):
        plots.parameters(prior)


def bands(axis):
    """Lower and upper edges of the bands of an axis, widest first: [(x, low, high), ...] of each begin."""
    found = []
    for collection in axis.collections:
        points = collection.get_paths()[0].vertices
        x = np.unique(points[:, 0])
        edges = [points[np.isclose(points[:, 0], at), 1] for at in x]
        found.append((x, np.array([e.min() for e in edges]), np.array([e.max() for e in edges])))
    return found


def test_fan_bands_are_the_predictive_quantiles(linear):
    rows = linear_data()
    states, actions = np.asarray(rows.states)[:5], np.asarray(rows.actions)[:5]
    draws = 4000
    figure = plots.fan(jax.random.key(1), linear, states, actions[:4], draws=draws, restart=1)
    assert_legible(figure)
    assert labels(figure) - {""} == {"level [m]", "flow [m/s]", "valve", "time [s]"}
    # Of a step linear in its parameters and of Gaussian noise, the one-step prediction is Gaussian and known.
    # The sd of a quantile of K draws is sqrt(p (1 - p) / K) / phi(z) of an sd.
    levels = {0.975: (1.959964, 0.0584), 0.9: (1.281552, 0.1755), 0.75: (0.674490, 0.3178)}
    for i, axis in enumerate(figure.axes[:2]):
        found = bands(axis)
        assert len(found) == 4 * 3
        for step in range(4):
            predicted = linear.predict(states[step : step + 1], actions[step : step + 1])
            mean = np.asarray(predicted.mean).reshape(-1)[i]
            sd = np.sqrt(np.diagonal(np.asarray(predicted.covariance_matrix).reshape(2, 2))[i])
            for (p, (z, phi)), (x, low, high) in zip(levels.items(), found[3 * step : 3 * step + 3], strict=True):
                assert x == pytest.approx(0.1 * np.array([step, step + 1]))
                error = 4.5 * np.sqrt(p * (1 - p) / draws) / phi * sd
                assert low[0] == high[0] == pytest.approx(states[step, i])
                assert abs(high[1] - (mean + z * sd)) < error and abs(low[1] - (mean - z * sd)) < error


def test_fan_without_restart_widens(posterior, data):
    states, actions = np.asarray(data.states)[:61], np.asarray(data.actions)[:60]
    figure = plots.fan(jax.random.key(1), posterior, states, actions, start=2.0, title="a test")
    assert_legible(figure)
    assert figure.axes[0].get_title("left") == "a test"
    assert labels(figure) - {""} == {"angle [rad]", "velocity [rad/s]", "torque [N·m]", "time [s]"}
    x, low, high = bands(figure.axes[0])[0]
    assert x[0] == 2.0 and len(x) == 61 and (high - low)[60] > 3 * (high - low)[5] > 0


def a_run(posterior, returns, solved):
    """A run of three steps with given returns."""
    count = len(returns)
    zeros = np.zeros((count, 3))
    rewards = zeros.copy()
    rewards[:, 0] = returns
    episodes = pp.Episode(
        *(
            jnp.asarray(x)
            for x in (np.zeros((count, 4, 2)), zeros[..., None], rewards, zeros == 0, np.zeros(count, bool), zeros)
        )
    )
    empty = pp.Transitions(np.zeros((1, 2)), np.zeros((1, 1)), np.zeros((1, 2)))
    seconds = tuple({"fit": 0.0, "plan": 0.0, "compile": 0.0} for _ in returns)
    task, entropy = pp.Task(lambda x, u: u[0], steps=3), np.arange(1.0 + count)
    how = (RandomPolicy(), pp.TaskReward(), pp.Thompson())
    return pp.Run(episodes, posterior, empty, np.array(solved), entropy, seconds, task, *how)


def test_returns_show_episodes_and_baselines(linear):
    run = a_run(linear, [1.0, 5.0, 6.0], [False, True, True])
    figure = loops.returns(run, oracle=[6.5, 7.5], random=0.5)
    assert_legible(figure)
    [axis] = figure.axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    np.testing.assert_array_equal(lines["solved"].get_xdata(), [2, 3])
    np.testing.assert_allclose(lines["not solved"].get_ydata(), [1.0])
    levels = [line.get_ydata()[0] for line in axis.get_lines() if len(set(line.get_ydata())) == 1]
    assert 7.0 in levels and 0.5 in levels
    assert {t.get_text() for t in axis.texts} == {"oracle", "random actions"}


def test_learning_curves_show_medians_and_quartiles_of_every_agent():
    values = np.arange(20.0).reshape(5, 4)
    figure = loops.learning_curves({"one": values, "other": values + 1}, oracle=19.0)
    assert_legible(figure)
    [axis] = figure.axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    np.testing.assert_allclose(lines["one"].get_ydata(), np.median(values, axis=0))
    np.testing.assert_allclose(lines["other"].get_ydata(), 1 + np.median(values, axis=0))
    _, low, high = bands(axis)[0]
    np.testing.assert_allclose((low, high), np.quantile(values, (0.25, 0.75), axis=0))


def test_phase_portrait_follows_truth_and_belief(posterior, data):
    truth = pendulum.dynamics().transition(TRUTH)
    figure = plots.phase_portrait(jax.random.key(2), posterior, truth, visited=data.states, steps=30, draws=5)
    assert_legible(figure)
    assert labels(figure) - {""} == {"angle [rad]", "velocity [rad/s]"}
    [axis] = figure.axes
    true = [line for line in axis.get_lines() if line.get_color() == figures.ORANGE]
    posterior_draws = [line for line in axis.get_lines() if line.get_color() == figures.BLUE and len(line.get_xdata())]
    assert len(true) == 8 and len(posterior_draws) == 5 * 8
    for line in true:
        x, y = (np.asarray(v, float) for v in line.get_data())
        keep = np.isfinite(x)
        start = jnp.array([0.0, y[0]])
        path = np.asarray(pp.rollout(truth, start, jnp.zeros((30, 1))))
        np.testing.assert_allclose(y[keep], path[:, 1], atol=1e-4)
        np.testing.assert_allclose(np.cos(x[keep]), np.cos(path[:, 0]), atol=1e-4)
        assert np.all(np.abs(x[keep]) <= np.pi + 1e-6)


def test_animation_has_a_frame_per_step_and_plays_in_real_time(tmp_path):
    steps = 12
    states = np.stack([np.linspace(0, 3, steps + 1), np.zeros(steps + 1)], 1)
    actions = np.linspace(-2.5, 2.5, steps)[:, None]
    path = machines.animate_pendulum(tmp_path / "swing.gif", states, actions, pendulum.dynamics(), every=2)
    with Image.open(path) as picture:
        assert picture.n_frames == steps // 2 and picture.info["duration"] == 100  # ms: two steps of 0.05 s
        frames = []
        for k in range(picture.n_frames):
            picture.seek(k)
            frames.append(np.asarray(picture.convert("L"), float))
    assert all(np.abs(a - b).max() > 50 for a, b in itertools.pairwise(frames))  # it moves

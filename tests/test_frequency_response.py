"""Frequency responses against scipy.signal: linear Steps, the exact discretisation of an oscillator, delays."""

import dense
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.signal
from helpers import linear_data, linear_dynamics

import physppl as pp
from physppl import plots
from physppl.inference import Laplace
from physppl.models import pendulum

KEY = jax.random.key(3)
REST = {"state": [0.0, 0.0], "action": [0.0]}
STATE = pp.StateSpace(position=pp.Real("m"), velocity=pp.Real("m/s"))
ACTION = pp.ActionSpace(force=pp.Bounded(-1.0, 1.0, "N"), wind=pp.Bounded(-1.0, 1.0))


def closed_form(A, B, C, frequencies):
    """Response of x[k + 1] = A x[k] + B u[k], y = C x, by the polynomials of its transfer function."""
    numerator, denominator = scipy.signal.ss2tf(A, B, C, np.zeros((1, 1)))
    z = np.exp(2j * np.pi * np.asarray(frequencies) * dense.DT)
    return np.polyval(numerator[0], z) / np.polyval(denominator, z)


def oscillator():
    stiffness = pp.physical("stiffness", 1.0, 100.0)

    def field(t, x, u):
        return jnp.stack([x[1], u[0] + 0.3 * u[1] - stiffness * x[0] - 0.4 * x[1]])

    return field


@pytest.mark.parametrize("output, row", [("second", dense.C[1]), ("velocity", [0.0, 1.0])])
def test_a_linear_step_has_the_response_of_its_matrices(output, row, x64):
    """A sensor of its own, and a coordinate; two steps of delay."""
    transition = dense.bind(input_delay=2).transition(dense.values)
    found = pp.frequency_response(transition, **REST, input="force", output=output)
    A, B = np.asarray(dense.matrix(dense.values["stiffness"])), dense.values["gain"] * dense.B
    late = np.exp(-2j * np.pi * found.frequencies * 2 * dense.DT)
    expected = closed_form(A, B, np.array([row]), found.frequencies) * late
    np.testing.assert_allclose(found.response[0], expected, rtol=1e-10)
    assert found.frequencies[-1] == pytest.approx(4.5) and found.delay == pytest.approx(0.2)


def test_a_field_has_the_response_of_its_exact_discretisation(x64):
    dynamics = pp.Dynamics(oscillator, STATE, ACTION, dt=dense.DT, substeps=50)
    rates, inputs = np.array([[0.0, 1.0], [-36.0, -0.4]]), np.array([[0.0], [0.3]])
    continuous = (rates, inputs, np.eye(2)[:1], np.zeros((1, 1)))
    A, B, C = tuple(scipy.signal.cont2discrete(continuous, dense.DT, "zoh"))[:3]  # pyright: ignore
    found = pp.frequency_response(
        dynamics.transition({"stiffness": 36.0}), [0.0, 0.0], [0.0, 0.0], input="wind", output="position",
        frequencies=[0.01, 0.5, 0.95, 1.0, 3.0, 5.0],
    )  # fmt: skip
    np.testing.assert_allclose(found.response[0], closed_form(A, B, C, found.frequencies), rtol=1e-6)
    assert found.magnitude[0, 0] == pytest.approx(0.3 / 36, rel=1e-3)
    assert found.phase[0, [0, 2, 3]] == pytest.approx(np.degrees(np.angle(found.response[0, [0, 2, 3]])))
    assert -250 < found.phase[0, 4] < -180  # past the resonance, with half a step of holding
    assert found.unit == "m"


@pytest.fixture(scope="module")
def recorded():
    """A posterior of recordings whose delay is uncertain, in fractions of a step."""
    dynamics = dense.bind(input_delay=dist.Uniform(0.0, 4.0))
    return pp.fit(jax.random.key(0), dynamics, dense.recording(40), Laplace())


def test_each_draw_has_its_own_response_and_delay(recorded):
    frequencies = [0.3, 2.0, 4.5]
    found = pp.frequency_response(
        recorded, **REST, input="force", output="first", frequencies=frequencies, draws=20, key=KEY
    )
    samples = {name: np.asarray(value, float) for name, value in recorded.samples(KEY, 20).items()}
    turn = np.exp(-2j * np.pi * np.array(frequencies) * dense.DT)
    for k, late in enumerate(samples["input_delay"]):
        A = np.array([[1.0, dense.DT], [-dense.DT * samples["stiffness"][k], 0.9]])
        expected = closed_form(A, samples["gain"][k] * dense.B, dense.C[:1], frequencies)
        expected = expected * turn ** np.floor(late) * (1 - late % 1 + late % 1 * turn)
        np.testing.assert_allclose(found.response[k], expected, rtol=1e-4)
    assert np.ptp(samples["input_delay"]) > 0.01 and found.response.shape == (20, 3)


def test_phases_are_continuous_and_of_one_turn():
    """Half a turn at once and a delay of many turns; draws on both sides of the cut at half a turn."""
    frequencies = np.linspace(0.1, 5.0, 40)
    machine = np.radians(np.array([179.0, -179.0]))[:, None] - np.pi * (frequencies > 2) * 0.98
    response = np.exp(1j * (machine - 2 * np.pi * 3.0 * frequencies))
    found = pp.FrequencyResponse(frequencies, response, np.full(2, 3.0), "u", "y", "")
    assert np.ptp(found.phase, axis=0) == pytest.approx(2.0)
    lost = found.phase[:, -1] - found.phase[:, 0]
    assert lost == pytest.approx(-360 * 3.0 * 4.9 - 0.98 * 180)


def test_the_figure_shows_median_band_and_truth(recorded):
    from test_plots import assert_legible, bands

    options = dict(REST, input="force", output="first")
    found = pp.frequency_response(recorded, **options, draws=40)
    truth = pp.frequency_response(dense.bind(input_delay=1).transition(dense.values), **options)
    figure = plots.bode(found, truth=truth)
    assert_legible(figure)
    above, below = figure.axes
    assert above.get_ylabel() == "magnitude [m/N]" and below.get_xlabel() == "frequency [Hz]"
    for axis, values, exact in ((above, found.magnitude, truth.magnitude), (below, found.phase, truth.phase)):
        median, dashed = axis.get_lines()[:2]
        np.testing.assert_allclose(median.get_ydata(), np.median(values, axis=0))
        np.testing.assert_allclose(dashed.get_ydata(), exact[0])
        (_, low, high), *_ = bands(axis)
        np.testing.assert_allclose(low, np.quantile(values, 0.05, axis=0))
        np.testing.assert_allclose(high, np.quantile(values, 0.95, axis=0))


def test_what_has_no_response_is_refused(recorded):
    swing = pendulum.dynamics().transition(pendulum.truth)
    options = {"action": [0.0], "input": "torque", "output": "angle"}
    with pytest.raises(ValueError, match=r"no equilibrium: velocity moves by -0.\d+ rad/s in one step"):
        pp.frequency_response(swing, [1.0, 0.0], **options)
    assert pp.frequency_response(swing, [np.pi, 0.0], **options).magnitude[0, 0] > 0  # upright, to rounding
    with pytest.raises(ValueError, match=r"Nyquist frequency 1 / \(2 dt\) = 10 Hz of steps of 0.05 s; got 11 Hz"):
        pp.frequency_response(swing, [0.0, 0.0], **options, frequencies=[1.0, 11.0])
    with pytest.raises(ValueError, match="got 0 Hz"):
        pp.frequency_response(swing, [0.0, 0.0], **options, frequencies=0.0)
    with pytest.raises(KeyError, match="no output 'angel'. Did you mean 'angle'"):
        pp.frequency_response(swing, [0.0, 0.0], **options | {"output": "angel"})
    with pytest.raises(KeyError, match="no input 'voltage'. Known: torque"):
        pp.frequency_response(swing, [0.0, 0.0], **options | {"input": "voltage"})
    with pytest.raises(ValueError, match=r"one state is \(2,\)"):
        pp.frequency_response(swing, [0.0], **options)
    with pytest.raises(TypeError, match="a Posterior of a Dynamics, or a Transition; got Dynamics"):
        pp.frequency_response(pendulum.dynamics(), [0.0, 0.0], **options)
    late = dense.bind(input_delay=dist.Uniform(0.0, 4.0)).transition(dense.values)
    with pytest.raises(ValueError, match="a prior for its input_delay, and this Transition no value of it"):
        pp.frequency_response(late, **REST, input="force", output="first")


def test_draws_of_functions_are_linearised():
    """A posterior of transitions, at a point that is an equilibrium of no draw: the tolerance is the caller's."""
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), linear_data(), Laplace())
    options = {"input": "valve", "output": "level", "frequencies": [1.0], "draws": 30, "key": KEY}
    with pytest.raises(ValueError, match="no equilibrium: level moves by"):
        pp.frequency_response(posterior, [0.0, 0.0], [0.0], **options)
    found = pp.frequency_response(posterior, [0.0, 0.0], [0.0], **options, tolerance=1.0)
    sites = posterior.draws(KEY, 30).sites
    for k, (gain, (weight, _)) in enumerate(zip(np.asarray(sites["gain"]), np.asarray(sites["weights"]), strict=True)):
        expected = closed_form([[1.0, weight], [weight, 1.0]], [[gain], [0.0]], [[1.0, 0.0]], [1.0])
        np.testing.assert_allclose(found.response[k], expected, rtol=1e-4)

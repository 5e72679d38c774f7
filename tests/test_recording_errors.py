"""Recordings that do not fit: every message names the argument, what came, and the remedy."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import physppl as pp
from physppl.inference import Laplace
from physppl.models import pendulum

pytestmark = pytest.mark.usefixtures("as_user")

y, u = np.zeros((6, 1)), np.zeros((6, 1))
times = 0.05 * np.arange(6)
encoder = pendulum.dynamics(sensors=("angle",))
scattered = pendulum.dynamics(sensors=("angle",), variation=dist.HalfNormal(0.1))
torque = encoder.action


def data(observations=y, actions=u, times=None, dt=None, **options):
    dt = 0.05 if times is None and dt is None else dt
    return pp.Trajectories(observations, actions, times, dt=dt, **options)


def one(values, at, new):
    values = np.array(values)
    values[at] = new
    return values


def step():
    mass = pp.physical("mass", 0.1, 2.0)
    return pp.Step(lambda t, x, u: x / mass)


def run(dynamics, given):
    return handlers.trace(handlers.seed(dynamics, 0)).get_trace(given)


def in_a_plate():
    with numpyro.plate("machine", 2):
        encoder(data())


def refused(kind, cases):
    return [pytest.param(kind, make, message, id=message[:40]) for make, message in cases]


of_data = refused(ValueError, [
    (lambda: data(y[:, 0], u[:, 0]), r"actions must be \(N, A\).*got \(6,\).*column: u\[:, None\]"),
    (lambda: data(y[:0], u[:0]), r"with N >= 1 samples; got \(0, 1\)"),
    (lambda: data(y[None, None], u[None, None]), r"\(recordings, N, A\).*got \(1, 1, 6, 1\)"),
    (lambda: data(y[:5]), r"as many rows; got \(5, 1\) against \(6, 1\).*repeat one if it is missing"),
    (lambda: data([[1.0], [2.0, 3.0]]), "`observations` is ragged.*one length"),
    (lambda: pp.Trajectories(y, u), r"exactly one of times, \(N,\) s, and dt, s"),
    (lambda: data(times=times, dt=0.05), "exactly one of times"),
    (lambda: data(times=times[:5]), r"times must have shape \(6,\), one per sample; got \(5,\)"),
    (lambda: data(times=one(times, 3, 0.1)), "times must increase; from sample 2 to 3 they do not"),
    (lambda: data(dt=-0.05), "times must increase; from sample 0 to 1"),
    (lambda: data(segment=0), "segment must be a whole number of samples of at least 1; got 0.*single shooting"),
    (lambda: data(segment=np.inf), "segment must be a whole number of samples.*got inf"),
    (lambda: data(segment="all"), "segment must be a whole number.*got all"),
    (lambda: data(valid=[1] * 6), r"valid must be bool of shape \(6,\); got int64 \(6,\)"),
    (lambda: data(valid=np.ones(5, bool)), r"valid must be bool of shape \(6,\); got bool \(5,\)"),
    (lambda: data(start=np.zeros(2)), r"start must be a pair \(mean, sd\) of the first state"),
    (lambda: data(start=(0.0, 1.0, 2.0)), r"start must be a pair \(mean, sd\)"),
    (lambda: data().pad(4), "pad: 6 samples do not fit into 4"),
    (lambda: pp.Trajectories.stack([]), "stack: no Trajectories were given"),
    (lambda: pp.Trajectories.stack([data(), data(segment=2)]), "differ in segment; give it to all or none"),
    (lambda: pp.Trajectories.stack([data(), data().inputs]), "differ in observations"),
    (lambda: pp.Trajectories.stack([data(), data(start=(np.zeros(2), np.ones(2)))]), "differ in start"),
]) + refused(TypeError, [
    (lambda: data([["0.1"]] * 6), "`observations` must be numeric; got .*'0.1'"),
    (lambda: data(times=["a"] * 6), "`times` must be numeric"),
    (lambda: data(start=("here", 1.0)), "`start` must be numeric"),
    (lambda: data()[3], r"cut by a slice of samples without a step, e.g. data\[100:400\]"),
    (lambda: data()[::2], "slice of samples without a step"),
    (lambda: pp.Trajectories.stack([data(), y]), "Trajectories.stack takes Trajectories; got ndarray"),
])  # fmt: skip

position = pp.StateSpace(height=pp.Real("m"))
of_sensing = refused(ValueError, [
    (lambda: pendulum.dynamics(sensors="angle"), "sensors must be a tuple of coordinates; got 'angle'"),
    (lambda: pendulum.dynamics(sensors=()), r"sensors must be a tuple of coordinates; got \(\)"),
    (lambda: pendulum.dynamics(sensors=("angle", "angle")), "sensors name a coordinate twice: angle, angle"),
    (lambda: pendulum.dynamics(observe=np.cos), "a StateSpace together with observe="),
    (lambda: pendulum.dynamics(sensors=position), "a StateSpace together with observe="),
    (lambda: pendulum.dynamics(measurement_df=2), r"measurement_df must exceed 2 \(None is Gaussian\); got 2"),
    (lambda: pendulum.dynamics(measurement_df="4"), "measurement_df must exceed 2"),
    *((lambda d=d: pendulum.dynamics(input_delay=d), r"whole number of samples or a NumPyro prior.*Uniform\(0, 4\)")
      for d in (-1, 1.5, np.nan, "2", [1, 2], True)),
    (lambda: pendulum.dynamics(measurement_noise=0.0), "a known measurement_noise must be positive; got 0.0"),
    (lambda: pendulum.dynamics(variation=[0.1, 0.2]), r"variation must be one sd.*got shape \(2,\)"),
    (lambda: pendulum.dynamics(input_gain_error=dist.Normal()), "prior of input_gain_error must be over one positive"),
    (lambda: run(pendulum.dynamics(sensors=position, observe=lambda x: x), data()),
     r"observe must return one reading per sensor \(height\), shape \(1,\); got \(2,\)"),
]) + refused(KeyError, [
    (lambda: pendulum.dynamics(sensors=("angel",)), "no coordinate 'angel'. Did you mean 'angle'"),
    (lambda: run(handlers.substitute(encoder, data={"mas": 1.0}), data()), "'mas', which is no.* mean 'mass'"),
]) + refused(TypeError, [
    (lambda: pendulum.dynamics(input_dely=2), "takes no argument 'input_dely'. Did you mean 'input_delay'"),
])  # fmt: skip

of_both = refused(ValueError, [
    (lambda: pendulum.dynamics().check(data()), r"observations must have 2 columns \(angle, velocity\); got 1.*senso"),
    (lambda: encoder.check(data(actions=np.zeros((6, 2)))), r"actions must have 1 columns \(torque\); got 2"),
    (lambda: encoder.check(data(start=(0.0, 1.0))), r"mean of `start` must have shape \(2,\); got \(\)"),
    (lambda: encoder.check(data(start=([0, np.nan], [1, 1]))), "mean of `start` must be finite"),
    (lambda: encoder.check(data(start=([0, 0], [1, -1]))), "sd of `start` must be finite, and an sd not negative"),
    (lambda: encoder.check(data(times=one(times, 5, np.nan))), "times has 1 non-finite values, first at sample 5"),
    (lambda: encoder.check(data(actions=one(u, 2, np.nan))), "actions has 1 non-finite.*sample 2, coordinate 'torque'"),
    (lambda: encoder.check(data(actions=one(u, 2, 9.0))), r"'torque' = 9 N m at sample 2, outside \[-2.5, 2.5\]"),
    (lambda: encoder.check(data(dt=0.02)), "a sample every 0.02 s, the Dynamics a step of 0.05 s.*dt=0.02, or res"),
    (lambda: encoder.check(data(times=one(times, 5, 1.0))), "0.8 s pass without a sample after sample 4.*valid=False"),
    (lambda: encoder.check(data(one(y, 3, 3.2))), r"'angle' jumps by about half a turn after sample 2.*in rad"),
    (lambda: pp.fit(jax.random.key(0), encoder, data().inputs, Laplace()), "fit needs observations; got inputs alone"),
    (lambda: pp.fit(jax.random.key(0), scattered, data(), Laplace()), "Laplace: `variation` has a prior.*or use HMC"),
    (lambda: run(pp.Dynamics(step, encoder.state, torque, dt=0.05), data(np.zeros((6, 2)), times=times**1.01)),
     "times are irregular.*a Step, which is defined for steps of dt alone.*Resample"),
]) + refused(NotImplementedError, [
    (lambda: handlers.seed(in_a_plate, 0)(), "cannot stand in a plate, here 'machine'.*`variation`"),
])  # fmt: skip


@pytest.mark.parametrize("kind, make, message", of_data + of_sensing + of_both)
def test_what_does_not_fit_is_refused_by_name(kind, make, message):
    with pytest.raises(kind, match=message):
        make()


def test_no_readings_give_the_prior_with_a_notice(notices):
    known = {"process_noise": 0.01, "measurement_noise": 0.01}
    dynamics = pendulum.dynamics(sensors=("angle",), **known)
    posterior = pp.fit(jax.random.key(0), dynamics, data(valid=np.zeros(6, bool)), Laplace(starts=2))
    assert "no readings: the prior" in notices.text
    np.testing.assert_allclose(posterior.mode, 0.0, atol=0.01)
    np.testing.assert_allclose(posterior.factor, np.eye(3), atol=1e-9)
    single = pp.fit(jax.random.key(0), dynamics, data(y[:1], u[:1]), Laplace(starts=2))  # one sample says as little
    np.testing.assert_allclose(single.factor, np.eye(3), atol=1e-9)

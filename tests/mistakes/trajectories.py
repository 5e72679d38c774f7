"""Mistakes in recordings: arrays of readings and inputs, and their clocks."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

import physppl as pp
from mistakes.common import DT, ROWS, bind, changed, field, nuts, u, x
from mistakes.entry import Mistake
from physppl.inference import Laplace

angles = x[:, :1]
times = DT * np.arange(ROWS)
ONE_STEP = "a step is code of one's own"


def recorded(readings=angles, inputs=u, clock=None, **options):
    options = options if clock is not None or "dt" in options else options | {"dt": DT}
    return pp.Trajectories(readings, inputs, clock, **options)


def check(data, **options):
    bind(**({"sensors": ("angle",)} | options)).check(data)


def plain(readings, inputs, times):
    """A simulation from rest against readings of the angle, by hand."""
    m = numpyro.sample("mass", dist.Uniform(0.1, 3.0))
    start = jnp.array([0.5, 0.0])

    def step(state, at):
        u, dt = at
        state = state + dt * field(m, state, u)
        return state, state[0]

    _, simulated = jax.lax.scan(step, start, (inputs[:-1], jnp.diff(times)))
    numpyro.sample("angle", dist.Normal(jnp.concatenate([start[:1], simulated]), 0.05), obs=readings)


def plain_from_a_start(readings, inputs, times):
    numpyro.sample("start", dist.Normal(0.0, jnp.array([1.0, -1.0])))
    plain(readings, inputs, times)


def plainly(readings=angles[:, 0], inputs=u, clock=times):
    return lambda: nuts(plain, readings, inputs, clock)


def discrete():
    m = pp.physical("mass", 0.1, 3.0)
    return pp.Step(lambda t, x, u: x + DT * field(m, x, u))


def in_a_plate():
    with numpyro.plate("machine", 2):
        bind(sensors=("angle",))(recorded())


def plain_in_a_plate(readings, inputs, times):
    with numpyro.plate("machine", 2):
        plain(readings, inputs, times)


def fit(dynamics, data):
    return pp.fit(jax.random.key(0), dynamics, data, Laplace())


MISTAKES = [
    Mistake(
        "A recording without its times",
        lambda: pp.Trajectories(angles, u), ("exactly one of times, (N,) s, and dt, s",), None, ONE_STEP,
    ),
    Mistake(
        "A reading more than inputs",
        lambda: recorded(inputs=u[:-1]),
        ("must have as many rows; got (40, 1) against (39, 1)", "repeat one if it is missing"),
        plainly(inputs=u[:-1]),
    ),
    Mistake(
        "A time stamp twice",
        lambda: recorded(clock=changed(times, 3, times[2])), ("times must increase; from sample 2 to 3 they do not",),
        plainly(clock=changed(times, 3, times[2])),
    ),
    Mistake(
        "A time that is NaN",
        lambda: check(recorded(clock=changed(times, 5, np.nan))), ("times has 1 non-finite values, first at sample 5",),
        plainly(clock=changed(times, 5, np.nan)),
    ),
    Mistake(
        "Times since 1970 in single precision",
        lambda: recorded(clock=(1.7e9 + times).astype(np.float32)), ("are rounded to", "subtract the first"),
        plainly(clock=(1.7e9 + times).astype(np.float32)),
    ),
    Mistake(
        "Times in ms",
        lambda: check(recorded(clock=1e3 * times)), ("a sample every 50 s, the Dynamics a step of 0.05 s", "dt=50"),
        plainly(clock=1e3 * times),
    ),
    Mistake(
        "Half a second without a sample",
        lambda: check(recorded(clock=times + 0.5 * (np.arange(ROWS) > 20))),
        ("pass without a sample after sample 20", "valid=False"),
        plainly(clock=times + 0.5 * (np.arange(ROWS) > 20)),
    ),
    Mistake(
        "Irregular times, and a program that makes discrete steps",
        lambda: jax.eval_shape(lambda: handlers.seed(bind(discrete), 0)(recorded(x, clock=times**1.01))),
        ("times are irregular", "Resample the recording"),
        None, ONE_STEP,
    ),
    Mistake(
        "Every second sample by `data[::2]`",
        lambda: recorded()[::2], ("slice of samples without a step",),
        plainly(angles[::2, 0], u[::2], times[: ROWS // 2]),
    ),
    Mistake(
        "A sample by its number, `data[3]`",
        lambda: recorded()[3], ("cut by a slice of samples without a step, e.g. data[100:400]",),
        plainly(angles[3, 0], u[3], times[3]),
    ),
    Mistake(
        "Two readings for one sensor",
        lambda: check(recorded(x)), ("observations must have 1 columns (angle); got 2", "sensors="),
        plainly(x),
    ),
    Mistake(
        "Readings in degrees, of an angle in rad",
        lambda: check(recorded(changed(angles, slice(20, None), angles[20:] + 160.0))),
        ("'angle' jumps by about half a turn after sample 19", "Is it in rad?"),
        plainly(changed(angles[:, 0], slice(20, None), angles[20:, 0] + 160.0)),
    ),
    Mistake(
        "An input that is missing",
        lambda: check(recorded(inputs=changed(u, (2, 0), np.nan))),
        ("actions has 1 non-finite", "sample 2, coordinate 'torque'"),
        plainly(inputs=changed(u, (2, 0), np.nan)),
    ),
    Mistake(
        "An infinite reading, of a sensor that saturates",
        lambda: recorded(changed(angles, (4, 0), np.inf)),
        ("1 observations are infinite, first at sample 4", "missing reading by NaN"),
        plainly(changed(angles[:, 0], 4, np.inf)),
    ),
    Mistake(
        "A first state without its standard deviation",
        lambda: recorded(start=np.zeros(2)),
        ("start must be a pair (mean, sd)",), None, "a first state is code of one's own",
    ),
    Mistake(
        "A negative standard deviation of the first state",
        lambda: check(recorded(start=([0.0, 0.0], [1.0, -1.0]))),
        ("sd of `start` must be finite, and an sd not negative",),
        lambda: nuts(plain_from_a_start, angles[:, 0], u, times),
    ),
    Mistake(
        "Inputs before the recording by a word that says nothing",
        lambda: recorded(before="last"),
        ("before must be numbers, one per input, or 'first'; got 'last'",), None, "a past is code of one's own",
    ),
    Mistake(
        "A segment of no samples",
        lambda: recorded(segment=0),
        ("segment must be a whole number of samples of at least 1; got 0",), None, "segments are code of one's own",
    ),
    Mistake(
        "Recordings with and without a known first state in one stack",
        lambda: pp.Trajectories.stack([recorded(), recorded(start=(np.zeros(2), np.ones(2)))]),
        ("differ in start", "give it to all or none"),
        None, "recordings are arrays of one's own",
    ),
    Mistake(
        "Several recordings as a list",
        lambda: fit(bind(sensors=("angle",)), [recorded(), recorded()]), ("got list", "Trajectories.stack(parts)"),
        plainly([angles[:, 0], angles[:30, 0]], [u, u[:30]], [times, times[:30]]),
    ),
    Mistake(
        "Recordings in a plate",
        in_a_plate, ("cannot stand in a plate, here 'machine'", "`variation`"),
        lambda: nuts(plain_in_a_plate, angles[:, 0], u, times),
    ),
    Mistake(
        "A prior of the variation between recordings, for a single mode",
        lambda: fit(bind(sensors=("angle",), variation=dist.HalfNormal(0.1)), recorded()),
        ("Laplace: `variation` has a prior", "use HMC"),
        None, "a hierarchy is code of one's own",
    ),
    Mistake(
        "Inputs alone, the readings forgotten",
        lambda: fit(bind(sensors=("angle",)), recorded().inputs), ("fit needs observations; got inputs alone",),
        plainly(None),
    ),
]  # fmt: skip

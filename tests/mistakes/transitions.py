"""Mistakes in arrays of states, actions and next states."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas
from numpyro import handlers

import physppl as pp
from mistakes.common import DT, ROWS, action, bind, changed, data, field, fit, mass, model, nuts, path, plainly, u, x, y
from mistakes.entry import Mistake
from physppl.inference import Laplace

one = pp.StateSpace(speed=pp.Real("rad/s"))
stamps = np.datetime64("2024-01-01") + (50 * np.arange(ROWS)).astype("m8[ms]")
half = np.arange(ROWS) % 2 == 0
sentinel = np.ma.array(changed(y, (7, 1), 9999.0), mask=changed(np.zeros(y.shape, bool), (7, 1), True))
turning = np.stack([0.4 * np.arange(ROWS + 1) % (2 * np.pi), np.full(ROWS + 1, 8.0)], axis=-1)


def plain_motor(states, actions, outcomes):
    """A motor of one coordinate, whose arrays are (N, 1)."""
    m = numpyro.sample("mass", dist.Uniform(0.1, 3.0))
    numpyro.sample("next", dist.Normal(states + DT * actions / m, 0.1), obs=outcomes)


def counted(states, actions, outcomes, valid):
    """The model by hand, in which a mask says which rows count."""
    m = numpyro.sample("mass", dist.Uniform(0.1, 3.0))
    mean = jax.vmap(lambda x, u: x + DT * field(m, x, u))(states, actions)
    with handlers.mask(mask=valid[:, None]):
        numpyro.sample("next", dist.Normal(mean, 0.01), obs=outcomes)


def plain_inputs():
    draws = handlers.trace(handlers.seed(model(), 0)).get_trace(x, u, None)
    return f"{nuts(model(), x, u, None)}: next states of {draws['next']['value'].shape} were sampled too"


def plain_fleet(states, actions, outcomes):
    """Two machines as a leading axis of a model of one."""
    m, sd = numpyro.sample("mass", dist.Uniform(0.1, 3.0)), numpyro.sample("sd", dist.HalfNormal(0.1))
    mean = states + DT * jnp.stack([states[..., 1], actions[..., 0] / m - 9.81 * jnp.sin(states[..., 0])], axis=-1)
    numpyro.sample("next", dist.Normal(mean, sd), obs=outcomes)


def two_in_a_plate_of_three(machines):
    with numpyro.plate("machine", 3):
        bind()(machines)


def plain_plate(states, actions, outcomes):
    with numpyro.plate("machine", 3, dim=-3):
        m = numpyro.sample("mass", dist.Uniform(0.1, 3.0))
        mean = states + DT * jnp.concatenate([states[..., 1:], actions / m - 9.81 * jnp.sin(states[..., :1])], axis=-1)
        numpyro.sample("next", dist.Normal(mean, 0.01), obs=outcomes)


def alone():
    """A motor of one coordinate in the library."""
    dynamics = pp.Dynamics(lambda: mass() and None, one, action, dt=DT)
    return pp.fit(jax.random.key(0), dynamics, pp.Transitions(x[:, 1:], u, y[:, 1]), Laplace())


MISTAKES = [
    Mistake(
        "A row of actions too few",
        lambda: data(actions=u[:-1]), ("actions must have as many rows as states; got (39, 1) against (40, 2)",),
        plainly(given=(x, u[:-1], y)),
    ),
    Mistake(
        "Time along the second axis, as in MATLAB",
        lambda: pp.Transitions(x.T, u.T, y.T), ("Rows are samples, (N, D) and (N, A)", "transpose"),
        plainly(given=(x.T, u.T, y.T)),
    ),
    Mistake(
        "A single action as (N,) in place of (N, 1)",
        lambda: data(actions=u[:, 0]), ("must be (N, D) and (N, A); got (40, 2) and (40,)", "x[:, None]"),
        plainly(given=(x, u[:, 0], y)),
    ),
    Mistake(
        "A column against a vector, (N, 1) against (N,)",
        alone, ("next_states must have the shape of states; got (40,) against (40, 1)", "would broadcast"),
        lambda: nuts(plain_motor, x[:, 1:], u, y[:, 1]),
    ),
    Mistake(
        "Rows of different length",
        lambda: data(states=[[1.0, 2.0], [3.0]]), ("`states` is ragged", "one length"),
        plainly(given=([[1.0, 2.0], [3.0]], u[:2], y[:2])),
    ),
    Mistake(
        "Numbers as text",
        lambda: data(states=x.astype(str)), ("`states` must be numeric", "Transitions.read"),
        plainly(given=(x.astype(str), u, y)),
    ),
    Mistake(
        "Complex numbers, from a Fourier transform",
        lambda: data(actions=np.fft.ifft(np.fft.fft(u, axis=0), axis=0)),
        ("`actions` must be real; got dtype complex128",),
        plainly(given=(x, np.fft.ifft(np.fft.fft(u, axis=0), axis=0), y)),
    ),
    Mistake(
        "Dates as times",
        lambda: data(times=stamps), ("`times` must be numeric", "datetime64", "read"),
        lambda: nuts(lambda t: model(lambda m, x, u: field(m, x, u) * t[0])(x, u, y), stamps),
    ),
    Mistake(
        "A mask of 0 and 1 in place of False and True",
        lambda: data(valid=half.astype(int)), ("valid must be bool of shape (40,); got int64 (40,)",),
        lambda: nuts(counted, x, u, y, half.astype(int)),
    ),
    Mistake(
        "A NaN among the next states",
        lambda: fit(given=data(next_states=changed(y, (7, 1), np.nan))),
        ("next_states has 1 non-finite values, first at transition 7, coordinate 'velocity' (nan)", "valid=False"),
        plainly(given=(x, u, changed(y, (7, 1), np.nan))),
    ),
    Mistake(
        "An infinite action",
        lambda: fit(given=data(actions=changed(u, (3, 0), np.inf))),
        ("actions has 1 non-finite values, first at transition 3, coordinate 'torque' (inf)", "Drop the row"),
        plainly(given=(x, changed(u, (3, 0), np.inf), y)),
    ),
    Mistake(
        "A missing value under a NumPy mask, with 9999 in its place",
        lambda: fit(given=data(next_states=sentinel)),
        ("next_states has 1 non-finite values, first at transition 7, coordinate 'velocity' (nan)", "valid=False"),
        plainly(given=(x, u, sentinel)),
    ),
    Mistake(
        "An action beyond its limits, recorded before a saturation",
        lambda: fit(given=data(actions=changed(u, (2, 0), 9.0))),
        ("out of bounds, first 'torque' = 9 N m at transition 2, outside [-2, 2]", "widen the ActionSpace"),
        plainly(given=(x, changed(u, (2, 0), 9.0), y)),
    ),
    Mistake(
        "A state without one of its coordinates",
        lambda: fit(given=pp.Transitions(x[:, 1:], u, y[:, 1:])),
        ("states must have 2 columns (angle, velocity); got 1",), plainly(given=(x[:, 1:], u, y[:, 1:])),
    ),
    Mistake(
        "Two inputs recorded for a machine of one",
        lambda: fit(given=data(actions=np.hstack([u, u]))), ("actions must have 1 columns (torque); got 2",),
        plainly(given=(x, np.hstack([u, u]), y)),
    ),
    Mistake(
        "A trajectory with many more states than actions",
        lambda: pp.Transitions.from_trajectory(path, u[:30]),
        ("states (T + 1, D), actions (T, A) must fit", "(41, 2), (30, 1)"),
        lambda: nuts(model(), *map(np.array, zip(*zip(path[:-1], u[:30], path[1:], strict=False), strict=True))),
    ),
    Mistake(
        "Inputs alone, the next states forgotten",
        lambda: fit(given=data(next_states=None)), ("fit needs next_states; got inputs alone",), plain_inputs,
    ),
    Mistake(
        "A recording at 0.1 s for a model of 0.05 s",
        lambda: fit(given=pp.Transitions.from_trajectory(path[::2], u[::2][:20], 0.1 * np.arange(21))),
        ("do not take dt=0.05 s, first transition 0 with 0.1 s", "Bind it with dt=0.1"),
        lambda: nuts(model(), path[:-2:2], u[::2], path[2::2]),
    ),
    Mistake(
        "An encoder that wraps at a turn, on a coordinate that does not",
        lambda: pp.fit(
            jax.random.key(0),
            pp.Dynamics(program_of_turns, pp.StateSpace(angle=pp.Real("rad"), speed=pp.Real("rad/s")), action, dt=DT),
            pp.Transitions.from_trajectory(turning, u), Laplace(),
        ),
        ("'angle' jumps by a whole turn after row 15", "np.unwrap"),
        lambda: nuts(model(lambda m, x, u: jnp.stack([x[1], 0.0 * m])), turning[:-1], u, turning[1:]),
    ),
    Mistake(
        "A fleet without a plate",
        lambda: fit(given=pp.Transitions.stack([data(), data()])),
        ("data of a fleet (2,) need a model with a plate around dynamics(data)",),
        lambda: nuts(plain_fleet, *(np.stack([a, a]) for a in (x, u, y))),
    ),
    Mistake(
        "Two machines in a plate of three",
        lambda: pp.fit(jax.random.key(0), two_in_a_plate_of_three, pp.Transitions.stack([data(), data()]), Laplace()),
        ("plate", "2", "3", "machine"), lambda: nuts(plain_plate, *(np.stack([a, a]) for a in (x, u, y))),
    ),
    Mistake(
        "A list of data sets",
        lambda: fit(given=[data(), data()]), ("got list", "Transitions.concatenate(parts)"),
        plainly(given=([x, x], [u, u], [y, y])),
    ),
    Mistake(
        "A DataFrame as it is",
        lambda: fit(given=pandas.DataFrame(x, columns=["angle", "velocity"])), ("got DataFrame", "Transitions.read"),
        plainly(given=(pandas.DataFrame(x), pandas.DataFrame(u), pandas.DataFrame(y))),
    ),
    Mistake(
        "A delay of the input, and transitions, which have none",
        lambda: fit(bind(input_delay=2)), ("input_delay=2, which transitions cannot have", "readings of Trajectories"),
        None, "a delay is code of one's own",
    ),
]  # fmt: skip


def program_of_turns():
    inertia = pp.physical("inertia", 0.1, 3.0)
    return lambda t, x, u: jnp.stack([x[1], u[0] / inertia])

"""Mistakes in spaces and in the arguments of a Dynamics."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

import physppl as pp
from mistakes.common import DT, action, bind, field, model, nuts, plainly, program, state, u, x, y
from mistakes.entry import Mistake

NO_SPACES = "its arrays have no named coordinates"
NO_SENSORS = "it has no sensors: readings are a model of one's own"


def scaled(scale):
    """The model by hand with velocities over a typical size."""
    with np.errstate(all="ignore"):
        return plainly(given=(x / np.array([1.0, scale]), u, y / np.array([1.0, scale])))


def solved(**options):
    """A step by diffrax itself."""

    def step(m, state, action):
        term = diffrax.ODETerm(lambda t, x, u: field(m, x, u))
        done = diffrax.diffeqsolve(term, **({"t0": 0.0, "t1": DT, "dt0": DT, "y0": state, "args": action} | options))
        return (jnp.asarray(done.ys)[-1] - state) / DT

    return plainly(step)


def substepped(m, state, action):
    inner = state
    for _ in range(2.5):
        inner = inner + DT / 2.5 * field(m, inner, action)
    return (inner - state) / DT


def readings(sensors, observe):
    """The library's likelihood of readings of an angle."""
    recorded = pp.Trajectories(x[:, :1], u, dt=DT)
    return lambda: jax.eval_shape(lambda: handlers.seed(bind(sensors=sensors, observe=observe), 0)(recorded))


def plain_readings(states, actions, outcomes):
    """Both coordinates against the one that is read."""
    m = numpyro.sample("mass", dist.Uniform(0.1, 3.0))
    mean = jax.vmap(lambda x, u: x + DT * field(m, x, u))(states, actions)
    numpyro.sample("angle", dist.Normal(mean, 0.1), obs=outcomes[:, :1])


def plain_tails(states, actions, outcomes):
    m, sd = numpyro.sample("mass", dist.Uniform(0.1, 3.0)), numpyro.sample("sd", dist.HalfNormal(0.1))
    mean = jax.vmap(lambda x, u: x + DT * field(m, x, u))(states, actions)
    numpyro.sample("next", dist.StudentT(0.0, mean, sd), obs=outcomes)


MISTAKES = [
    Mistake(
        "Coordinates without names",
        lambda: pp.StateSpace("angle", "velocity"),
        ("takes named coordinates, StateSpace(x=Real(...))",), None, NO_SPACES,
    ),
    Mistake(
        "A class for a coordinate, `velocity=Real`",
        lambda: pp.StateSpace(velocity=pp.Real), ("coordinate 'velocity'", "write Real(...)"), None, NO_SPACES,
    ),
    Mistake(
        "A space without coordinates",
        lambda: pp.StateSpace(), ("needs at least one named coordinate", "StateSpace(x=Real(...))"), None, NO_SPACES,
    ),
    Mistake(
        "An angle declared in degrees",
        lambda: pp.Angle("deg"), ("Angle is in rad; got unit 'deg'", "Convert where the data are read"),
        plainly(given=(np.rad2deg(x), u, np.rad2deg(y))),
    ),
    Mistake(
        "A typical size where the unit belongs, `Real(8.0)`",
        lambda: pp.Real(8.0), ("a unit is text", "A typical size is scale=8.0"), None, "NumPyro has no units",
    ),
    Mistake(
        "A typical size of zero",
        lambda: pp.Real("rad/s", scale=0.0), ("scale must be positive and finite; got 0.0",), scaled(0.0),
    ),
    Mistake(
        "Limits of an action the wrong way round",
        lambda: pp.Bounded(2.0, -2.0), ("low < high; got low=2.0, high=-2.0",),
        lambda: f"every action is clipped to {set(np.unique(jnp.clip(u, 2.0, -2.0)).tolist())}",
    ),
    Mistake(
        "An action without limits",
        lambda: pp.Bounded(-np.inf, np.inf), ("Bounded needs finite low < high; got low=-inf",),
        lambda: f"random actions are {dist.Uniform(-jnp.inf, jnp.inf).sample(jax.random.key(0), (2,))}",
    ),
    Mistake(
        "Limits as text, from a configuration file",
        lambda: pp.Bounded("-2", "2"), ("Bounded: `low` must be numeric; got '-2'",), lambda: jnp.clip(u, "-2", "2"),
    ),
    Mistake(
        "An action declared as a real number",
        lambda: pp.ActionSpace(torque=pp.Real("N m")), ("coordinate 'torque' must be Bounded; got Real",),
        None, NO_SPACES,
    ),
    Mistake(
        "State and action space in each other's place",
        lambda: pp.Dynamics(program(), action, state, dt=DT),
        ("takes a StateSpace, then an ActionSpace; got ActionSpace",),
        lambda: nuts(model(), u, x, y),
    ),
    Mistake(
        "A misspelt coordinate",
        lambda: state.array(velocty=1.0), ("no coordinate 'velocty'", "Did you mean 'velocity'"), None, NO_SPACES,
    ),
    Mistake(
        "A step of zero seconds",
        lambda: bind(dt=0.0), ("dt must be positive seconds; got 0.0",),
        lambda: nuts(model(dt=0.0), x, u, y),
    ),
    Mistake(
        "Two and a half solver steps",
        lambda: bind(substeps=2.5), ("substeps must be an integer of at least 1; got 2.5",), plainly(substepped),
    ),
    Mistake(
        "A solver by its name, `solver=\"rk4\"`",
        lambda: bind(solver="rk4"), ("solver must be a diffrax solver object, e.g. diffrax.Tsit5()",),
        solved(solver="rk4"),
    ),
    Mistake(
        "An implicit solver without tolerances",
        lambda: bind(solver=diffrax.Kvaerno5()).transition({"mass": 1.0}),
        ("Kvaerno5 needs tolerances", "Adaptive(Kvaerno5())"),
        solved(solver=diffrax.Kvaerno5()),
    ),
    Mistake(
        "A misspelt argument, `input_dely=2`",
        lambda: bind(input_dely=2), ("takes no argument 'input_dely'", "Did you mean 'input_delay'"),
        None, "a delay is code of one's own",
    ),
    Mistake(
        "A delay of a negative number of samples",
        lambda: bind(input_delay=-1), ("input_delay must be a whole number of samples", "dist.Uniform(0, 4)"),
        lambda: nuts(model(), x, np.roll(u, -1, axis=0), y),
    ),
    Mistake(
        "One sensor by its name alone, `sensors=\"angle\"`",
        lambda: bind(sensors="angle"), ("sensors must be a tuple of coordinates; got 'angle'",), None, NO_SENSORS,
    ),
    Mistake(
        "A sensor that the machine has not",
        lambda: bind(sensors=("angel",)), ("no coordinate 'angel'", "Did you mean 'angle'"), None, NO_SENSORS,
    ),
    Mistake(
        "A function of the readings without saying what is read",
        lambda: bind(observe=jnp.cos), ("a StateSpace together with observe=",), None, NO_SENSORS,
    ),
    Mistake(
        "A function of the readings that returns too many",
        readings(pp.StateSpace(angle=pp.Angle()), lambda x: x),
        ("observe must return one reading per sensor (angle), shape (1,); got (2,)",),
        lambda: nuts(plain_readings, x, u, y),
    ),
    Mistake(
        "Zero degrees of freedom of heavy-tailed readings",
        lambda: bind(measurement_df=0), ("measurement_df must exceed 2 (None is Gaussian); got 0",),
        lambda: nuts(plain_tails, x, u, y),
    ),
    Mistake(
        "Variation between recordings, one for each coordinate",
        lambda: bind(variation=[0.1, 0.2]),
        ("variation must be one sd", "got shape (2,)"), None, "a hierarchy is code of one's own",
    ),
]  # fmt: skip

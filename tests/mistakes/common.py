"""A pendulum with one unknown, in the library and by hand in NumPyro, and transitions of it whose mass is 1 kg."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import physppl as pp
from physppl.inference import Laplace

DT, ROWS = 0.05, 40
state = pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=8.0))
action = pp.ActionSpace(torque=pp.Bounded(-2.0, 2.0, "N m"))


def simulated() -> tuple[np.ndarray, np.ndarray]:
    """States (ROWS + 1, 2) and torques (ROWS, 1) of Euler steps, with a little noise."""
    rng = np.random.default_rng(0)
    torques, states = rng.uniform(-2.0, 2.0, (ROWS, 1)), [np.array([0.5, 0.0])]
    for (u,) in torques:
        angle, velocity = states[-1]
        states.append(states[-1] + DT * np.array([velocity, u - 9.81 * np.sin(angle)]) + rng.normal(0.0, 0.002, 2))
    return np.stack(states), torques


path, u = simulated()
x, y = path[:-1], path[1:]


def mass():
    return pp.physical("mass", 0.1, 3.0, unit="kg")


def field(m, x, u):
    """Rates of the pendulum."""
    return jnp.stack([x[1], u[0] / m - 9.81 * jnp.sin(x[0])])


def program(rates: Callable = field, prepare: Callable = lambda m: m) -> Callable:
    """A program of the library around rates(mass, state, action)."""

    def pendulum():
        m = prepare(mass())
        return lambda t, x, u: rates(m, x, u)

    return pendulum


def bind(of=None, **options) -> pp.Dynamics:
    return pp.Dynamics(program() if of is None else of, state, action, **({"dt": DT} | options))


def data(**changed) -> pp.Transitions:
    return pp.Transitions(**({"states": x, "actions": u, "next_states": y} | changed))


def changed(values, at, new) -> np.ndarray:
    """A copy with one entry changed."""
    values = np.array(values)
    values[at] = new
    return values


def fit(of=None, given=None, backend=None, **options):
    """Fit the library's pendulum."""
    dynamics = of if isinstance(of, pp.Dynamics) else bind(of, **options)
    return pp.fit(jax.random.key(0), dynamics, data() if given is None else given, backend or Laplace(starts=2))


def fits(rates: Callable = field, prepare: Callable = lambda m: m) -> Callable:
    return lambda: fit(program(rates, prepare))


def model(rates: Callable = field, prior: Any = None, noise: Any = None, dt: float = DT) -> Callable:
    """A NumPyro model of transitions, written by hand: rates(mass, state, action) by an Euler step."""

    def transitions(states, actions, outcomes=None):
        m = numpyro.sample("mass", dist.Uniform(0.1, 3.0) if prior is None else prior())
        sd = numpyro.sample("sd", dist.HalfNormal(0.1)) if noise is None else noise()
        mean = jax.vmap(lambda x, u: x + dt * rates(m, x, u))(states, actions)
        numpyro.sample("next", dist.Normal(mean, sd), obs=outcomes)

    return transitions


def nuts(of: Callable, *given, key=None, kernel: Callable = NUTS, **options) -> str:
    """Run plain NUTS; returns the mass that it finds."""
    sizes = {"num_warmup": 100, "num_samples": 100, "progress_bar": False} | options
    mcmc = MCMC(kernel(of), **sizes)
    mcmc.run(jax.random.key(0) if key is None else key, *given)
    return of_draws(mcmc.get_samples())


def of_draws(draws) -> str:
    """The mass of some draws, beside the true one."""
    values = np.asarray(draws["mass"], float) if "mass" in draws else np.zeros(0)
    if not values.size:
        return ""
    if not np.all(np.isfinite(values)):
        return "the mass is NaN"
    return f"mass {values.mean():.2f} ± {values.std():.2f} kg, truth 1"


def plainly(rates: Callable = field, given=(x, u, y), **options) -> Callable:
    """Run NUTS on the model by hand."""
    return lambda: nuts(model(rates, **options), *given)

"""A double integrator to plan for, and its trajectories in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import physppl as pp

DT = 0.2  # s
state = pp.StateSpace(place=pp.Real("m"), speed=pp.Real("m/s"))
action = pp.ActionSpace(thrust=pp.Bounded(-1.0, 2.0, "N"), brake=pp.Bounded(-0.3, 0.1, "N"))  # not symmetric
middle, half = (action.low + action.high) / 2, (action.high - action.low) / 2


def program():
    gain = pp.physical("gain", dist.Normal(1.0, 0.5), unit="1/kg")
    return pp.Step(lambda t, x, u: jnp.stack([x[0] + DT * x[1], x[1] + DT * (gain * u[0] + u[1])]))


dynamics = pp.Dynamics(program, state, action, dt=DT, process_noise=1e-3)


def particles(*gains):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(dynamics.transition({"gain": g}) for g in gains))


def simulate(gain: float, start, actions) -> np.ndarray:
    """(H + 1, D) in plain NumPy."""
    states = [np.asarray(start, float)]
    for thrust, brake in np.asarray(actions, float):
        place, speed = states[-1]
        states.append(np.array([place + DT * speed, speed + DT * (gain * thrust + brake)]))
    return np.array(states)


def reach(states, actions):
    """Minus the squared distance to 1 m and a cost of effort; of JAX and NumPy arrays alike."""
    return -((states[1:, 0] - 1.0) ** 2).sum() - 0.01 * (actions**2).sum()

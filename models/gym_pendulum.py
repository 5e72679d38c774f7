"""Gymnasium's Pendulum-v1, a semi-implicit `Step` with speed and torque clipped; angle 0 is upright."""

import jax.numpy as jnp
import numpy as np

from physppl.control.systems import SimulatedSystem
from physppl.data.spaces import ActionSpace, Angle, Bounded, Real, StateSpace
from physppl.dynamics import Dynamics
from physppl.language.integrate import Step
from physppl.language.sites import physical
from physppl.planning.tasks import Task

DT = 0.05  # s
MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m

state = StateSpace(angle=Angle(), velocity=Real("rad/s", scale=8.0))
action = ActionSpace(torque=Bounded(-MAX_TORQUE, MAX_TORQUE, "N m"))
truth = {"mass": 1.0, "length": 1.0}  # kg, m


def step(mass, length, gravity=10.0, damping=0.0) -> Step:
    """One step of a uniform rod: the new velocity moves the angle (kg, m, m/s2, N m s/rad; Gymnasium: no damping)."""

    def step(t, state, action):
        angle, velocity = state
        torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE) - damping * velocity
        acceleration = 1.5 * gravity / length * jnp.sin(angle) + 3.0 / (mass * length**2) * torque
        velocity = jnp.clip(velocity + DT * acceleration, -MAX_SPEED, MAX_SPEED)
        return jnp.stack([angle + DT * velocity, velocity])

    return Step(step)


def program():
    """Program with unknown mass and length, gravity 10 m/s2 as in Gymnasium."""
    return step(physical("mass", 0.2, 2.0, unit="kg"), physical("length", 0.3, 1.8, unit="m"))


def dynamics(program=program, **options) -> Dynamics:
    """The pendulum bound to its spaces; other options are those of `Dynamics`."""
    return Dynamics(program, state, action, dt=DT, **options)


def system(noise=0.0) -> SimulatedSystem:
    """A simulated Pendulum-v1 at `truth`, starting near hanging."""
    return SimulatedSystem(dynamics().transition(truth, noise), [jnp.pi, 0.0], [0.1, 0.1])


def _reward(state, action):
    angle = (state[0] + jnp.pi) % (2 * jnp.pi) - jnp.pi
    return -(angle**2 + 0.1 * state[1] ** 2 + 0.001 * action[0] ** 2)


def from_observation(observation):
    """State (angle, velocity) of Gymnasium's observation (cosine, sine, velocity)."""
    return np.array([np.arctan2(observation[1], observation[0]), observation[2]], float)


swing_up = Task(_reward, steps=200)
"""Gymnasium's cost, negative, of the next state: a plan's value is then Gymnasium's one step later.

Gymnasium's own reward is of the state before a step, with its action. Summed over a plan the two differ by the cost
of the initial state, which no action changes, and by that of the last state, which is included here.
"""

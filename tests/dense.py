"""A linear machine, and its recordings as one big Gaussian in NumPy: all latent states and all readings at once."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.linalg import block_diag

import physppl as pp

DT = 0.1
Q, R = np.array([0.05, 0.2]), np.array([0.1, 0.15, 0.3])
B, C = np.array([[0.02], [0.3]]), np.array([[1.0, 0.3], [-0.2, 1.0], [0.5, 0.5]])
state = pp.StateSpace(position=pp.Real("m", scale=2.0), velocity=pp.Real("m/s", scale=3.0))
sensors = pp.StateSpace(first=pp.Real("m"), second=pp.Real("m/s", scale=2.0), third=pp.Real("m"))
action = pp.ActionSpace(force=pp.Bounded(-2.0, 2.0, "N"))
values = {"stiffness": 1.2, "gain": 0.8}


def matrix(stiffness):
    return jnp.array([[1.0, DT], [0.0, 0.9]]) + stiffness * jnp.array([[0.0, 0.0], [-DT, 0.0]])


def observe(x):
    return C @ x


def sites():
    return pp.physical("stiffness", dist.Normal(1.5, 0.3)), pp.physical("gain", dist.Normal(1.0, 0.5))


def program():
    stiffness, gain = sites()
    return pp.Step(lambda t, x, u: matrix(stiffness) @ x + gain * (B @ u))


def bind(program=program, process=Q, measurement=R, **options):
    noises = {"process_noise": process, "measurement_noise": measurement}
    return pp.Dynamics(program, state, action, dt=DT, sensors=sensors, observe=observe, **noises, **options)


def recording(rows: int, seed: int = 0, segment: int = 1, times=None) -> pp.Trajectories:
    """Arbitrary readings with a gap, under arbitrary inputs."""
    rng = np.random.default_rng(seed)
    valid = np.ones(rows, bool)
    valid[rows // 3 : rows // 3 + 3] = False
    readings, inputs, start = 0.3 * rng.normal(size=(rows, 3)).cumsum(0), rng.uniform(-2, 2, (rows, 1)), (0.3, -0.2)
    clock = {"dt": DT} if times is None else {"times": times}
    return pp.Trajectories(readings, inputs, valid=valid, start=(start, (0.4, 0.8)), segment=segment, **clock)


class Linear(NamedTuple):
    """One recording of s[k+1] = A[k] s[k] + drift[k] + noise of covariance Q[k], read as y[k] = C s[k] + noise.

    Attributes:
        A, drift, Q: (N - 1, ...), on the way from each sample to the next.
        C: (d, D).
        sensor_sd: (d,).
        mean, sd: of the first state, (D,).
        valid: (N,) bool.
    """

    A: np.ndarray
    drift: np.ndarray
    Q: np.ndarray
    C: np.ndarray
    sensor_sd: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    valid: np.ndarray

    def states(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (N D,) and covariance (N D, N D) of all states, before any reading."""
        size, count = len(self.mean), len(self.valid)
        ahead = np.eye(count * size)  # (identity - transitions) states = drifts + noises
        for k, a in enumerate(self.A):
            ahead[(k + 1) * size : (k + 2) * size, k * size : (k + 1) * size] = -a
        noise = block_diag(np.diag(self.sd**2), *self.Q)
        root = np.linalg.inv(ahead)
        return root @ np.concatenate([self.mean, *self.drift]), root @ noise @ root.T

    def readings(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of all valid readings, sample after sample."""
        mean, covariance, sense = *self.states(), self.sense()
        noise = np.diag(np.tile(self.sensor_sd**2, self.valid.sum()))
        return sense @ mean, sense @ covariance @ sense.T + noise

    def sense(self) -> np.ndarray:
        """All valid readings as a linear map of all states."""
        every = np.kron(np.eye(len(self.valid)), self.C)
        return every[np.repeat(self.valid, len(self.C))]

    def log_density(self, observations) -> float:
        """Log density of a recording (N, d)."""
        return log_normal(observations[self.valid].ravel(), *self.readings())

    def smoothed(self, observations) -> tuple[np.ndarray, np.ndarray]:
        """Means (N, D) and covariances (N, D, D) of the states given the whole recording."""
        (mean, covariance), (expected, spread), sense = self.states(), self.readings(), self.sense()
        gain = np.linalg.solve(spread, sense @ covariance).T
        mean = mean + gain @ (observations[self.valid].ravel() - expected)
        covariance, count, size = covariance - gain @ sense @ covariance, len(self.valid), len(self.mean)
        blocks = covariance.reshape(count, size, count, size)
        return mean.reshape(count, size), blocks[np.arange(count), :, np.arange(count)]

    def one_by_one(self, observations) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd of each valid reading given those before it, from the Cholesky factor."""
        (mean, covariance), y = self.readings(), observations[self.valid].ravel()
        lower = np.linalg.cholesky(covariance)
        return y - np.diag(lower) * np.linalg.solve(lower, y - mean), np.diag(lower)


def log_normal(x, mean, covariance) -> float:
    lower = np.linalg.cholesky(covariance)
    error = np.linalg.solve(lower, x - mean)
    return -0.5 * error @ error - np.log(np.diag(lower)).sum() - 0.5 * len(x) * np.log(2 * np.pi)


def differences(function, z, step=1e-5) -> list[np.ndarray]:
    """Central differences of each array that `function` returns, the parameters' axis last."""
    sides = [(function(z + step * e), function(z - step * e)) for e in np.eye(len(z))]
    columns = [[(up - down) / (2 * step) for up, down in zip(*pair, strict=True)] for pair in sides]
    return [np.stack(column, axis=-1) for column in zip(*columns, strict=True)]


def dense(data, stiffness, gain, q=Q, r=R, delay=0, gain_error=0.0, timing_error=0.0) -> Linear:
    """The oracle of one recording of the machine."""
    inputs = np.asarray(data.actions)
    inputs = np.concatenate([np.repeat(np.asarray(data.before)[None], delay, 0), inputs])[: len(inputs)]
    variance = (gain_error * inputs) ** 2 + (timing_error * np.diff(inputs, axis=0, prepend=inputs[:1])) ** 2
    ahead, by_input, late = np.asarray(matrix(stiffness)), gain * B, data.segment * np.diag(q**2)
    entered = [variance[max(k + 1 - data.segment, 0) : k + 1].sum(axis=0) for k in range(len(inputs))]
    noise = [(by_input * v @ by_input.T + late) * ((k + 1) % data.segment == 0) for k, v in enumerate(entered)]
    count, (mean, sd) = len(data) - 1, map(np.asarray, data.start)
    A, drift = np.broadcast_to(ahead, (count, 2, 2)), inputs[:-1] @ by_input.T
    return Linear(A, drift, np.array(noise[:-1]), C, r, mean, sd, np.asarray(data.valid))

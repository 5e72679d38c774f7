"""Smooth priors of random action sequences."""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.internal.choices import Choices


class Proposal(Choices):
    """Gaussian prior over action perturbations in time. Axes: H horizon, B independent normals, A action, N draws."""

    @abstractmethod
    def matrix(self, horizon: int) -> Float[np.ndarray, "H B"]:
        """Matrix from B independent standard normals to H steps of unit variance: rows of unit length.

        It depends on settings alone, so a planner computes it once, at trace time.

        Raises:
            ValueError: where the horizon does not suit.
        """


class White(Proposal):
    """Independent steps. Planners that have bounded noise (uniform, truncated normal) use that instead."""

    def matrix(self, horizon: int) -> Float[np.ndarray, "H B"]:
        return np.eye(horizon)


class Coloured(Proposal):
    """Noise with power spectrum 1/f^exponent (C. Pinneri et al., CoRL 2020); periodic in the horizon.

    Attributes:
        exponent: 0 is white, 1 pink, 2 red.
    """

    exponent: float = eqx.field(default=2.0, static=True)

    def __check_init__(self):
        if not 0 <= self.exponent < np.inf:
            raise ValueError(f"Coloured needs a finite exponent >= 0; got {self.exponent}.")

    def matrix(self, horizon: int) -> Float[np.ndarray, "H B"]:
        frequencies = np.fft.rfftfreq(horizon)
        frequencies[0] = frequencies[1] if horizon > 1 else 1.0  # the constant has the amplitude of the slowest wave
        amplitudes = frequencies ** (-self.exponent / 2)
        matrix = np.fft.irfft(amplitudes[:, None] * np.fft.rfft(np.eye(horizon), axis=0), n=horizon, axis=0)
        return _unit_rows(matrix)


class Autoregressive(Proposal):
    """Stationary Ornstein-Uhlenbeck process: the correlation of steps k apart is correlation^k.

    Attributes:
        correlation: of successive steps, in [0, 1); a time constant of n steps is exp(-1 / n).
    """

    correlation: float = eqx.field(default=0.9, static=True)

    def __check_init__(self):
        if not 0 <= self.correlation < 1:
            raise ValueError(
                f"Autoregressive: correlation must lie in [0, 1); got {self.correlation}. "
                "For a time constant of n steps write exp(-1 / n)."
            )

    def matrix(self, horizon: int) -> Float[np.ndarray, "H B"]:
        lag = np.subtract.outer(np.arange(horizon), np.arange(horizon))
        # The Cholesky factor of correlation^|lag|, in closed form: the first step is drawn from the stationary
        # distribution, every later one adds an innovation.
        innovation_sd = np.where(np.arange(horizon) == 0, 1.0, np.sqrt(1 - self.correlation**2))
        return np.where(lag >= 0, self.correlation ** np.maximum(lag, 0), 0.0) * innovation_sd


class Spline(Proposal):
    """Natural cubic spline through independent normals at knots, evenly spaced from the first step to the last.

    Attributes:
        knots: at least 2, at most the horizon.
    """

    knots: int = eqx.field(default=6, static=True)

    def __check_init__(self):
        if self.knots < 2:
            raise ValueError(f"Spline needs at least 2 knots; got {self.knots}.")

    def matrix(self, horizon: int) -> Float[np.ndarray, "H B"]:
        if self.knots > horizon:
            raise ValueError(
                f"Spline needs knots <= horizon; got {self.knots} knots for {horizon} steps. Take fewer knots."
            )
        position = np.linspace(0, self.knots - 1, horizon)[:, None]  # of each step, in knot spacings
        knot = np.arange(self.knots)
        # Second derivatives m of the natural spline, zero at the ends: m[i-1] + 4 m[i] + m[i+1] = 6 diff(values, 2)[i].
        # Between knots: sum(h v + (h^3 - h) m / 6), h the linear weights (C. de Boor, A Practical Guide to Splines).
        second, values = np.zeros((self.knots, self.knots)), np.eye(self.knots)
        inner = 4 * np.eye(self.knots - 2) + np.eye(self.knots - 2, k=1) + np.eye(self.knots - 2, k=-1)
        second[1:-1] = np.linalg.solve(inner, 6 * np.diff(values, 2, axis=0))
        hat = np.maximum(1 - np.abs(position - knot), 0)  # linear interpolation weights of a step's two knots
        return _unit_rows(hat @ values + (hat**3 - hat) @ second / 6)


def draw(key: PRNGKeyArray, proposal: Proposal, shape: tuple[int, ...], dtype) -> Float[Array, "H A N"]:
    """Draw perturbations of unit variance, independent between actions and draws.

    Args:
        shape: (H, A, N).

    Raises:
        ValueError: where the proposal's matrix has not H rows of unit length.
    """
    matrix = proposal.matrix(shape[0])
    if len(matrix) != shape[0] or not np.allclose((matrix**2).sum(axis=1), 1.0):
        raise ValueError(
            f"{type(proposal).__name__}.matrix({shape[0]}) must have {shape[0]} rows of unit length, so that each step "
            f"has unit variance; got {matrix.shape}. Divide each row by its norm."
        )
    normals = jax.random.normal(key, (matrix.shape[1], *shape[1:]), dtype)
    return jnp.tensordot(jnp.asarray(matrix, dtype), normals, axes=1)


def _unit_rows(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.sqrt((matrix**2).sum(axis=1, keepdims=True))

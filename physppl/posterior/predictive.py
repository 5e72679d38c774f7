"""The predictive distribution of the next state."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.stats import norm
from jaxtyping import Float


class PredictiveDistribution(dist.MixtureSameFamily):
    """A mixture of Gaussians over (..., D), with its moments and its marginals."""

    def __init__(
        self, log_weights: Float[Array, " K"], means: Float[Array, "*B K D"], lowers: Float[Array, "*B K D D"]
    ):
        components = dist.MultivariateNormal(means, scale_tril=lowers)
        weights: Any = dist.Categorical(logits=jnp.broadcast_to(log_weights, means.shape[:-1]))
        super().__init__(weights, components)

    def __repr__(self) -> str:
        return f"PredictiveDistribution(batch shape {self.batch_shape}, event shape {self.event_shape})"

    @property
    def covariance_matrix(self) -> Float[Array, "*B D D"]:
        """Covariance, of the Gaussians' means included."""
        components: Any = self.component_distribution
        weights = self._weights[..., None, None]
        apart = (components.mean - jnp.asarray(self.mean)[..., None, :])[..., None]
        within = components.covariance_matrix
        return jnp.sum(weights * (within + apart * jnp.swapaxes(apart, -1, -2)), axis=-3)

    @property
    def scale_tril(self) -> Float[Array, "*B D D"]:
        """Lower Cholesky factor of the covariance."""
        return jnp.linalg.cholesky(self.covariance_matrix)

    def marginal_cdf(self, value: Float[Array | np.ndarray, "*B D"]) -> Float[Array, "*B D"]:
        """Probability of a smaller outcome, of each coordinate alone."""
        components: Any = self.component_distribution
        below = norm.cdf((value[..., None, :] - components.mean) / jnp.sqrt(components.variance))
        return jnp.sum(self._weights[..., None] * below, axis=-2)

    @property
    def _weights(self) -> Float[Array, "*B K"]:
        weights: Any = self.mixing_distribution
        return weights.probs

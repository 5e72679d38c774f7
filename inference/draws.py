"""A belief held as draws: what every sample-based backend returns."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.errors import Status
from physppl.inference.curvature import scatter
from physppl.posterior import Posterior
from physppl.transition import Transition
from physppl.virtual import VirtualSpace

BASIS_DRAWS = 256  # draws from which mean and factor of the belief's functions are built


class DrawsPosterior(Posterior):
    """A belief as draws in virtual space, equally weighted: what samplers and particle methods return.

    Attributes:
        points: (chains, draws, P).
        stats: per-draw diagnostics of the sampler, (chains, draws) each.
    """

    space: VirtualSpace
    points: Float[Array, "C S P"]
    stats: dict[str, Array]

    def __init__(
        self, model, data, space: VirtualSpace, points, stats=None, status: Array | int = Status.OK, method="Draws"
    ):
        self.model, self.data, self.space, self.points, self.stats = model, data, space, points, stats or {}
        self.method = method
        finite = jnp.all(jnp.isfinite(points))
        self.status = jnp.where(finite, jnp.asarray(status), Status.NONFINITE)

    def sample_stats(self) -> dict[str, Array]:
        return self.stats

    def _sites(self, z) -> dict[str, Array]:
        return self.space.sites(self.model, z, self.data)

    def _transition(self, z) -> Transition:
        return self.model.bind(self._sites(z))

    def _thinned(self):
        """At most BASIS_DRAWS draws, evenly spaced over all chains."""
        flat = self.points.reshape(-1, self.points.shape[-1])
        return flat[jnp.linspace(0, len(flat) - 1, min(BASIS_DRAWS, len(flat))).round().astype(int)]

    def _draw(self, key: PRNGKeyArray) -> Transition:
        pick_key, recording_key = jax.random.split(key)
        flat = self.points.reshape(-1, self.points.shape[-1])
        return self._of_a_recording(recording_key, flat[jax.random.randint(pick_key, (), 0, len(flat))])

    def _of_a_recording(self, key: PRNGKeyArray, z) -> Transition:
        """The machine in a new recording, whose parameters differ where the model says so."""
        own = scatter(self.space, self.model, self.data, z)
        return self._transition(z + own * jax.random.normal(key, z.shape, z.dtype))

    def _basis(self, states, actions, times):
        points = self._thinned()
        transitions = jax.vmap(self._of_a_recording)(jax.random.split(jax.random.key(0), len(points)), points)
        values = jax.vmap(lambda f: jax.vmap(f)(states, actions, times), out_axes=-1)(transitions)
        mean = jnp.mean(values, axis=-1, keepdims=True)
        return mean[..., 0], (values - mean) / jnp.sqrt(values.shape[-1] - 1.0)

    def _samples(self, key: PRNGKeyArray, draws: int):
        """The draws themselves; `key` and `draws` do not change them."""
        del key, draws
        return jax.vmap(jax.vmap(lambda z: self.space.values(self.model, z, self.data)))(self.points)

    def _noise(self) -> Array:
        noise = jax.vmap(lambda z: self._transition(z).noise)(self._thinned())
        return jnp.sqrt(jnp.mean(noise**2, axis=0))

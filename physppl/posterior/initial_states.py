"""First states of recordings, estimated from all readings and set beside their prior."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from physppl.data.spaces import StateSpace
from physppl.data.trajectories import Trajectories
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.dynamics.kalman import smooth
from physppl.dynamics.recordings import filtered, first_states
from physppl.internal.precision import doubles
from physppl.internal.tables import aligned, as_html, number
from physppl.internal.units import pretty

DRAWS = 32  # of the posterior; the share of the variance that is theirs is known to 25 %, its sd to 13 %
AT_ONCE = 4  # draws that are filtered together: memory for all would not suffice for long recordings
LEFT = {0, 1, 4}  # columns of text


@dataclass(frozen=True, eq=False)
class InitialStates:
    """First states of R recordings, with sds; `str` aligns them as a table, notebooks show it as HTML.

    Attributes:
        state: the state space, with the names and units of the D coordinates.
        times: (R,) s, of the first samples.
        mean, sd: (R, D) given all readings, in the coordinates' units; the parameters' uncertainty is included.
        prior_mean, prior_sd: (R, D) of `start`, or its default where the data have none.
    """

    state: StateSpace
    times: Float[np.ndarray, " R"]
    mean: Float[np.ndarray, "R D"]
    sd: Float[np.ndarray, "R D"]
    prior_mean: Float[np.ndarray, "R D"]
    prior_sd: Float[np.ndarray, "R D"]

    @property
    def rows(self) -> list[dict]:
        """One dict per recording and coordinate: recording, time, name, unit, mean, sd, prior_mean, prior_sd."""
        names = list(zip(self.state.names, map(pretty, self.state.units), strict=True))
        return [
            {
                "recording": r, "time": float(time), "name": name, "unit": unit,
                "mean": float(self.mean[r, i]), "sd": float(self.sd[r, i]),
                "prior_mean": float(self.prior_mean[r, i]), "prior_sd": float(self.prior_sd[r, i]),
            }
            for r, time in enumerate(self.times) for i, (name, unit) in enumerate(names)
        ]  # fmt: skip

    def _cells(self) -> list[list[str]]:
        cells = [["recording", "coordinate", "mean", "sd", "unit", "prior mean", "prior sd"]]
        for row in self.rows:
            now = [number(row[k], row["sd"]) for k in ("mean", "sd")]
            before = [number(row[k], row["prior_sd"]) for k in ("prior_mean", "prior_sd")]
            cells.append([str(row["recording"]), row["name"], *now, row["unit"], *before])
        return cells

    def __str__(self) -> str:
        return "\n".join(aligned(self._cells(), LEFT))

    def _repr_html_(self) -> str:
        return as_html(self._cells(), LEFT)


def initial_states(posterior: Any, key: PRNGKeyArray | None = None) -> InitialStates:
    """Estimate the first state of each recording that a posterior was fitted to.

    Under each of some posterior draws the recordings are filtered and smoothed as the likelihood has them, segments
    and differences of the parameters between recordings included. Mean and variance are those of the mixture: the
    variance is the mean of the smoother's, plus the variance of its means between draws.

    Args:
        posterior: of a Dynamics and Trajectories.
        key: random key of the draws; `jax.random.key(0)` by default.

    Raises:
        TypeError: for a posterior of anything else, whose states are data or are not there.
    """
    model, data = getattr(posterior, "model", None), getattr(posterior, "data", None)
    if not isinstance(model, Dynamics) or not isinstance(data, Trajectories):
        raise TypeError(
            "initial_states takes a Posterior of a Dynamics fitted to Trajectories, whose states are latent; got "
            f"{type(posterior).__name__}{'' if model is None else f' of {model}, fitted to {type(data).__name__}'}."
        )
    key = jax.random.key(0) if key is None else key
    samples = posterior.samples(key, DRAWS)
    names = UnconstrainedSpace.of(model, data, params=posterior.params).names
    with jax.enable_x64(True):
        rows = doubles(data.rows())
        sites = {name: jnp.asarray(samples[name], float) for name in names}
        params = {name: jnp.asarray(value, float) for name, value in posterior.params.items()}
        prior = first_states(model, rows)
        means, variances = map(np.asarray, _smoothed(model, sites, params, rows))
    prior_mean, prior_sd = map(np.asarray, prior)
    sd = np.sqrt(variances.mean(axis=0) + means.var(axis=0, ddof=1))
    return InitialStates(model.state, np.asarray(rows.times)[:, 0], means.mean(axis=0), sd, prior_mean, prior_sd)


@eqx.filter_jit
def _smoothed(model, sites, params, rows):
    """Means and variances (draws, R, D) of the smoothed first states under each draw of the sites."""

    def first(values):
        means, covariances = jax.vmap(smooth)(filtered(model, values | params, rows))
        return means[:, 0], jnp.diagonal(covariances[:, 0], axis1=-2, axis2=-1)

    return jax.lax.map(first, sites, batch_size=AT_ONCE)

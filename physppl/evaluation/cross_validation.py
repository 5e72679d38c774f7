"""Leave-one-out cross-validation: from one fit by importance sampling, or exactly by refits."""

import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray
from scipy.special import logsumexp

from physppl.data.data import Data
from physppl.data.trajectories import Trajectories
from physppl.dynamics import Dynamics
from physppl.evaluation.predictive_scores import outcome_terms
from physppl.evaluation.recording_forecasts import stepwise
from physppl.internal.errors import check_key
from physppl.posterior.arviz import pointwise
from physppl.posterior.backend import Backend, fit
from physppl.posterior.posterior import Posterior

DRAWS = 1000
HEAVY = 0.7  # Pareto k beyond which an estimate cannot be trusted


class LeftOut(NamedTuple):
    """Log predictive densities of n parts of the data, each given all others, nats.

    Attributes:
        each: (n,).
        pareto_k: (n,) of the importance weights (A. Vehtari et al., JMLR 25, 2024); infinite where one
            draw dominates, zero for exact refits.
    """

    each: Float[np.ndarray, " n"]
    pareto_k: Float[np.ndarray, " n"]

    @property
    def elpd(self) -> float:
        """Expected log predictive density, their sum: larger is better, among posteriors of the same data."""
        return float(self.each.sum())

    @property
    def se(self) -> float:
        """Standard error of the sum, from the scatter between parts."""
        return float(np.sqrt(len(self.each)) * self.each.std(ddof=1)) if len(self.each) > 1 else np.nan

    @property
    def heavy(self) -> int:
        """Number of parts whose Pareto k is above 0.7, so that their estimates may be far off."""
        return int(np.sum(self.pareto_k > HEAVY))


def leave_one_out(key: PRNGKeyArray, posterior: Posterior, draws: int = DRAWS) -> LeftOut | None:
    """Leave-one-out by Pareto-smoothed importance sampling, from one fit.

    A part is a transition; of Trajectories a whole recording, since a reading is not independent of those after it; of
    another model each entry of its observed sites. Draws of an approximate posterior, such as Laplace's, are taken for
    draws of the exact one.

    Returns:
        None where there are no pointwise log likelihoods, or fewer than two parts.
    """
    samples = posterior.samples(key, draws, group_by_chain=True)
    sites = pointwise(posterior, samples)
    if not sites:
        return None
    terms = np.concatenate(list(sites.values()), axis=-1)
    groups = posterior.data.groups() if isinstance(posterior.data, Data) else None
    if groups is not None and isinstance(posterior.model, Dynamics):
        terms = sites[posterior.model.likelihood(posterior.data).site]
        terms = np.stack([terms[..., groups == g].sum(axis=-1) for g in np.unique(groups)], axis=-1)
    return _psis(terms, samples) if terms.shape[-1] > 1 else None


def _psis(terms: Float[np.ndarray, "C S n"], samples) -> LeftOut:
    stats: Any = importlib.import_module("arviz_stats.base").array_stats  # ArviZ takes a second to import
    chains, draws = terms.shape[:2]
    points = np.concatenate([np.reshape(v, (chains, draws, -1)) for v in samples.values()], axis=-1)
    points = points[..., np.ptp(points, axis=(0, 1)) > 0]
    share = 1.0  # effective share of the draws
    if chains > 1 and points.shape[-1]:
        share = np.mean(stats.ess(points, chain_axis=0, draw_axis=1, method="mean")) / (chains * draws)
    each, pareto_k = [], []
    for term in np.moveaxis(terms, -1, 0):
        try:
            value, k, _ = stats.loo(term, chain_axis=0, draw_axis=1, r_eff=min(share, 1.0))
        except (ValueError, IndexError):  # one draw dominates: no tail to fit
            value, k = np.log(term.size) - logsumexp(-term), np.inf
        each.append(float(value))
        pareto_k.append(float(k))
    return LeftOut(np.array(each), np.array(pareto_k))


def leave_one_recording_out(
    key: PRNGKeyArray, model: Dynamics, data: Trajectories, backend: Backend, draws: int = DRAWS
) -> LeftOut:
    """Exact log density of each recording under a fit to all others, at one refit per recording.

    Args:
        draws: posterior draws of each refit, over which the recording's density is averaged.

    Raises:
        TypeError: for other data than Trajectories.
        ValueError: for fewer than two recordings with readings.
    """
    check_key(key)
    if not isinstance(data, Trajectories):
        raise TypeError(f"leave_one_recording_out takes Trajectories; got {type(data).__name__}.")
    rows = data.rows()
    count = len(rows.valid)
    if count < 2 or not np.asarray(rows.valid).any(axis=-1).all():
        raise ValueError(
            f"leave_one_recording_out needs at least two recordings with readings in each; got {data}. Stack them: "
            "Trajectories.stack([first, second])."
        )

    def part(indices) -> Trajectories:
        return jax.tree.map(lambda x: np.asarray(x)[indices], rows)

    each = []
    for r, (fit_key, score_key) in enumerate(zip(*jax.random.split(key, (2, count)), strict=True)):
        posterior = fit(fit_key, model, part(np.arange(count) != r), backend)
        with jax.enable_x64(True):
            readings, mixture, counted = outcome_terms(score_key, posterior, stepwise(part([r])), draws)
            logs = jnp.sum(mixture.components.log_prob(readings), axis=(1, 2, 3), where=counted)
            each.append(float(jax.nn.logsumexp(logs) - jnp.log(len(logs))))
    return LeftOut(np.array(each), np.zeros(count))

"""The posterior that users hold: its contract, and the reports on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PRNGKeyArray

from physppl.density.forms import GaussianForm
from physppl.internal.errors import unknown
from physppl.posterior import arviz, diagnostics, fleet, saving, summary
from physppl.posterior.base import AbstractPosterior
from physppl.posterior.verdict import Check


class Posterior(AbstractPosterior):
    """A posterior predictive transition object: functions to draw and predict with, sites, and reports on the fit.

    Backends derive from it and define the four methods of `AbstractPosterior`, which describes the attributes.
    """

    def to_arviz(self, key: PRNGKeyArray | None = None, draws: int = 1000, *, predictive: bool = False):
        """An xarray DataTree for ArviZ: posterior, prior, log_likelihood, observed_data, sample_stats; padding dropped.

        Use it with `arviz_stats` and `arviz_plots` (`import arviz as az` from Python 3.12, `arviz.preview` on 3.11).

        Args:
            predictive: add the group posterior_predictive, for `plot_ppc_dist`, `plot_ppc_pit` and `loo_pit`: one
                outcome of each row for each draw, one step ahead; of recordings each reading given those before it.
        """
        key = jax.random.key(0) if key is None else key
        return arviz.datatree(key, self, draws, self.check(key), predictive)

    def summary(self, key: PRNGKeyArray | None = None, *, truth: dict[str, Any] | None = None) -> summary.Summary:
        """The table of sites with units and verdicts, beside the truth where it is known; print it."""
        return summary.summarise(jax.random.key(0) if key is None else key, self, truth=truth)

    def log_prob(self, values: dict[str, Any]) -> Array:
        """Log density of site values (constrained, in the sites' units) under a posterior that is held as a Gaussian.

        Args:
            values: {site: value} of all latent sites.

        Raises:
            TypeError: for a posterior that is not held as a Gaussian of full rank in unconstrained space.
            KeyError: for a site without a value, with close matches.
        """
        form = self.unconstrained()
        if not isinstance(form, GaussianForm) or form.factor.shape[0] != form.factor.shape[1]:
            raise TypeError(f"log_prob needs a Gaussian of full rank in unconstrained space; {self.method} keeps none.")
        for name in form.space.names:
            if name not in values:
                raise unknown("value of site", name, values, "log_prob")
        dtype = jnp.result_type(float)
        with jax.enable_x64(True):
            return _log_prob(form, self.model, self.data, dict(values)).astype(dtype)

    def check(self, key: PRNGKeyArray | None = None) -> Check:
        """One verdict on the fit, with its reasons and their remedies; print it."""
        return diagnostics.check(self, key)

    def save(self, path: str | Path) -> None:
        """Write the posterior to one file, which `physppl.load(path, model)` reads; its program is not in it.

        The file is written whole or not at all, holds every array bit by bit, and runs no code when it is read.
        """
        saving.save(path, self)

    def machine(self, *index: int, **plates: int) -> "MachinePosterior":
        """The posterior of one machine of a fleet: to draw, predict and act with.

        It includes the information from the other machines. `posterior.machine(3)`; with plates in plates one index
        each, outermost first, or by name: `posterior.machine(hall=1, machine=3)`.

        Raises:
            TypeError: for a posterior whose model has no plate around one Dynamics, or an index that is not whole.
            KeyError: for a plate that is not there, with close matches.
            ValueError: for an index out of range, naming plate and size.
        """
        marginal = fleet.marginal(self, *index, **plates)
        return MachinePosterior(marginal.model, marginal.data, self.status, self.method, marginal, self)


def _answered_by(part: str, *names: str) -> Iterator[Any]:
    """Methods that a posterior leaves to another, `part` of it."""

    def method(name: str):
        return lambda self, *args: getattr(getattr(self, part), name)(*args)

    return map(method, names)


@eqx.filter_jit
def _log_prob(form: GaussianForm, model, data, values) -> Array:
    values = {name: jnp.asarray(values[name], float) for name in form.space.names}
    z = form.space.point(model, values, data)
    white = jnp.linalg.solve(form.factor.T, z - form.mode)
    log_det = jnp.linalg.slogdet(form.factor)[1]
    gaussian = -0.5 * (white @ white + len(z) * jnp.log(2 * jnp.pi)) - log_det
    return gaussian - form.space.log_jacobian(model, z, data)


class MachinePosterior(Posterior):
    """The posterior of one machine of a fleet; made by `posterior.machine(index)`.

    `samples` and `summary` are of the machine's own sites and of the population's; `check`, `facts` and `sample_stats`
    are those of the fleet's fit, and the fleet's posterior is the one to save or update.

    Attributes:
        marginal: the fleet's posterior in the machine's own sites.
        fleet: the posterior of all machines.
    """

    marginal: Any
    fleet: Posterior

    _draw, _basis, _samples, _noise = _answered_by("marginal", "_draw", "_basis", "_samples", "_noise")
    _mean, _entropy, _several, _noises = _answered_by("marginal", "_mean", "_entropy", "_several", "_noises")
    sample_stats, facts = _answered_by("fleet", "sample_stats", "facts")

    def moments(self) -> dict[str, tuple[Array, Array]]:
        """{site: (mean, sd)} of the machine and of the population, deterministic sites included, in the sites' units.

        To first order at the mode of a Gaussian (the delta method), sample moments of draws. Where a deterministic site
        is nonlinear along a ridge, as a mass computed from the population's mean and sd and the machine's offset, the
        first order stays on the ridge, which Gaussian draws leave.
        """
        dtype = jnp.result_type(float)
        with jax.enable_x64(True):
            return jax.tree.map(lambda x: x.astype(dtype), fleet.site_moments(self.marginal))

    def check(self, key: PRNGKeyArray | None = None) -> Check:
        """The verdict on the fleet's fit."""
        return self.fleet.check(key)

    def save(self, path) -> None:
        """Raise TypeError: the fleet's posterior is to be saved, of which the machine is taken after loading."""
        raise TypeError(
            "save: this is one machine of a fleet. Save the fleet's posterior, and ask what is loaded for the machine: "
            f"load(path, model).machine({', '.join(map(str, self.model.program.index))})."
        )

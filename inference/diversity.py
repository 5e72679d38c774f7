"""Sources of diversity in an ensemble: starting points, resampled data, a random term of each member's density."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.data import Data
from physppl.density.curvature import NOISES
from physppl.density.unconstrained import Gaussian, UnconstrainedSpace, gaussians


class Joint(NamedTuple):
    """A joint density: a model, its unconstrained space, and all data."""

    space: UnconstrainedSpace
    model: Callable
    data: Any


class Tilt(NamedTuple):
    """A random term of a log density, linear in the parameters and in the means of the outcomes."""

    slope: Float[Array, " P"]  # of the log prior at the anchor
    scores: dict[str, Array]  # of noise drawn as the outcomes' is, in units of its sd

    def value(
        self, z: Float[Array, " P"], outcomes: dict[str, Gaussian], log_scales: dict[str, Array], weight=1.0
    ) -> Array:
        """The term at z, whose outcomes are given.

        Args:
            outcomes: the Gaussian of each observed site at z; its mean is differentiated.
            log_scales: log sd of each outcome, a constant.
            weight: of each outcome.
        """
        total = -self.slope @ z
        for name, site in outcomes.items():
            scores = self.scores[name] * site.root_weight * jnp.exp(-log_scales[name])
            total -= weight * jnp.sum(scores * (site.value - site.mean))
        return total


class Member(NamedTuple):
    """One member's problem: its starting point, its data, and the random term of its density."""

    start: Float[Array, " P"]
    data: Any
    tilt: Tilt | None


class Diversity(eqx.Module):
    """Base class of the ways in which members differ.

    Attributes:
        near: members are scattered about one mode, from which a Newton search of each starts.
    """

    near: ClassVar[bool] = True

    @abstractmethod
    def member(self, key: PRNGKeyArray, joint: Joint, draw: Float[Array, " P"]) -> Member:
        """One member, made from this prior draw; pure, for `vmap`."""


class RandomStarts(Diversity):
    """Members start at different prior draws; each ends in a mode of the same posterior.

    Deep ensembles (B. Lakshminarayanan, A. Pritzel, C. Blundell, NeurIPS 2017). Where there is one mode all
    members coincide, and without data they all are the prior's mode: their spread is that of local optima only.
    """

    near: ClassVar[bool] = False

    def member(self, key: PRNGKeyArray, joint: Joint, draw: Float[Array, " P"]) -> Member:
        return Member(draw, joint.data, None)


class Bootstrap(Diversity):
    """Members are fitted to rows resampled with replacement, whole recordings of Trajectories; never to padding.

    (B. Efron, Annals of Statistics 7, 1979; for dynamics K. Chua et al., "PETS", NeurIPS 2018.) Members
    differ much in what few rows determine, and not at all in what no row determines.
    """

    def member(self, key: PRNGKeyArray, joint: Joint, draw: Float[Array, " P"]) -> Member:
        if not isinstance(joint.data, Data):
            raise TypeError(f"Bootstrap resamples Transitions or Trajectories; got {type(joint.data).__name__}.")
        return Member(draw, joint.data.resampled(key), None)


class Anchored(Diversity):
    """Randomised maximum a posteriori: each member has its own anchor, a prior draw, and noisy targets.

    Randomised priors (I. Osband, J. Aslanides, A. Cassirer, NeurIPS 2018); anchored ensembles (T. Pearce, F. Leibfried,
    A. Brintrup, AISTATS 2020). Members are exact draws of the posterior where the program is linear in Gaussian sites
    and the noise is known, at any number of data; elsewhere their mean and covariance are the posterior's to first
    order, as Laplace's are, and each member is a mode of a nonlinear problem, so that none is an implausible fit.

    Noisy targets tilt the log likelihood by e mean(z) / sd, e standard normal. An anchor a tilts the log prior by
    -z' grad log p(a), which for Normal sites is the same as replacing their mean by a. It works for every
    prior whose density in unconstrained space is log-concave (Normal, `physical`, HalfNormal, LogNormal, Gamma,
    Uniform, a non-centred hierarchy; not Cauchy or Student-t): the member's prior then is exp(-D(z, a)), D the Bregman
    divergence of -log p, so that before data each member is its anchor, a prior draw; and the covariance of the
    gradient over anchors is the prior's Fisher information, whatever its shape.

    Noise sds have no anchors: these would shift every member's weighting of the data. Noisy targets would make a
    learned noise sqrt(2) times too large, so each member learns its noise from the true targets. Targets are perturbed
    by the noise at the posterior's mode (with `Adam`, at the member's current point).
    """

    def member(self, key: PRNGKeyArray, joint: Joint, draw: Float[Array, " P"]) -> Member:
        """A member that starts at its anchor; directions that the data do not determine stay there.

        Raises:
            ValueError: for outcomes that are not Normal or Student-t, naming the site.
        """
        space, model, data = joint
        slope = jax.grad(lambda z: space.log_prior_alone(model, z, data))(draw)
        slope = jnp.where(space.where(lambda name: name.endswith(NOISES)), 0.0, slope)
        trace = space.trace(model, draw, data)
        outcomes, scores = gaussians(trace), {}
        for name, site in trace.items():
            if site["type"] != "sample" or not site["is_observed"]:
                continue
            if name not in outcomes:
                raise ValueError(
                    f"Anchored: the outcomes {name!r} are {type(site['fn']).__name__}; noisy targets are defined "
                    "for Normal and Student-t ones only. Use Bootstrap() or RandomStarts()."
                )
            scores[name] = _score(jax.random.fold_in(key, len(scores)), outcomes[name])
        return Member(draw, data, Tilt(slope, scores))


def _score(key: PRNGKeyArray, site: Gaussian) -> Array:
    """Derivative of the log density in the site's mean, at noise drawn at random, in units of the scale."""
    if site.df is None:
        return jax.random.normal(key, site.mean.shape, site.mean.dtype)
    noise = jax.random.t(key, site.df, site.mean.shape, site.mean.dtype)
    return (site.df + 1) * noise / (site.df + noise**2)

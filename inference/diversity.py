"""What makes the members of an ensemble differ: where they begin, the data they see, a random term of their density."""

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
from physppl.density.unconstrained import Gaussian, UnconstrainedSpace, gaussians, latent_part


class Joint(NamedTuple):
    """What there is to believe about: a model, its virtual space, and all data."""

    space: UnconstrainedSpace
    model: Callable
    data: Any


class Tilt(NamedTuple):
    """A random term of a log density, linear in what it is about: sites before data, means of the outcomes."""

    slope: Float[Array, " P"]  # of the log prior at the anchor
    scores: dict[str, Array]  # of noise drawn as the outcomes' is, in units of its sd

    def value(
        self, z: Float[Array, " P"], outcomes: dict[str, Gaussian], log_scales: dict[str, Array], weight=1.0
    ) -> Array:
        """At z, where the outcomes have these means, with the sds of some point to be held; each counts `weight`."""
        total = -self.slope @ z
        for name, site in outcomes.items():
            scores = self.scores[name] * site.root_weight * jnp.exp(-log_scales[name])
            total -= weight * jnp.sum(scores * (site.value - site.mean))
        return total


class Member(NamedTuple):
    """What one member goes by: where it begins, the data it sees, and its own random term."""

    start: Float[Array, " P"]
    data: Any
    tilt: Tilt | None


class Diversity(eqx.Module):
    """What makes members differ.

    Attributes:
        near: members are scattered about one mode, and a Newton search of each begins there.
    """

    near: ClassVar[bool] = True

    @abstractmethod
    def member(self, key: PRNGKeyArray, joint: Joint, draw: Float[Array, " P"]) -> Member:
        """One member, for which this prior draw was taken; pure, for `vmap`."""


class RandomStarts(Diversity):
    """Members differ in where they begin, at prior draws; each ends in a mode of the one posterior.

    Deep ensembles (B. Lakshminarayanan, A. Pritzel, C. Blundell, NeurIPS 2017). Where there is one mode members
    coincide, and without data they all are the prior's mode: this belief shows what optimisation left open.
    """

    near: ClassVar[bool] = False

    def member(self, key: PRNGKeyArray, joint: Joint, draw: Float[Array, " P"]) -> Member:
        return Member(draw, joint.data, None)


class Bootstrap(Diversity):
    """Members see rows resampled with replacement, of Trajectories whole recordings; padding is never among them.

    (B. Efron, Annals of Statistics 7, 1979; for dynamics K. Chua et al., "PETS", NeurIPS 2018.) What few rows tell
    about varies much between members; of what no row tells about, all members say the same.
    """

    def member(self, key: PRNGKeyArray, joint: Joint, draw: Float[Array, " P"]) -> Member:
        if not isinstance(joint.data, Data):
            raise TypeError(f"Bootstrap resamples Transitions or Trajectories; got {type(joint.data).__name__}.")
        return Member(draw, joint.data.resampled(key), None)


class Anchored(Diversity):
    """Randomised maximum a posteriori: each member has an anchor of its own, drawn from the prior, and noisy targets.

    Randomised priors (I. Osband, J. Aslanides, A. Cassirer, NeurIPS 2018); anchored ensembles (T. Pearce, F. Leibfried,
    A. Brintrup, AISTATS 2020). Members are exact draws of the posterior where the program is linear in Gaussian sites
    and the noise is known, at any number of data; elsewhere their mean and covariance are the posterior's to first
    order, as Laplace's are, and each is a mode of a nonlinear problem, off which no draw can fall.

    Noisy targets tilt the log likelihood by e mean(z) / sd, e standard normal. An anchor a tilts the log prior by
    -z' grad log p(a), which for Normal sites is the same as to put a in the place of their mean. It does so for every
    prior whose density in virtual space is log-concave (Normal, `physical`, HalfNormal, LogNormal, Gamma, Uniform, a
    non-centred hierarchy; not Cauchy or Student-t): the member's prior then is exp(-D(z, a)), D the Bregman divergence
    of -log p, so that before data each member is its anchor, a prior draw; and the slope's covariance over anchors is
    the prior's Fisher information, whatever its shape.

    Noises stay as they are: their anchors would shift every member's weighting of the data, and noisy targets would
    make a learned noise sqrt(2) times too large. Targets vary by the noise at the posterior's mode (with `Adam`, at
    where the member is), and the noise of a member is learned from the true ones.
    """

    def member(self, key: PRNGKeyArray, joint: Joint, draw: Float[Array, " P"]) -> Member:
        """Begins at its anchor, where directions that the data leave open end.

        Raises:
            ValueError: for outcomes that are not Normal or Student-t, naming the site.
        """
        space, model, data = joint
        prior = lambda z: space.log_densities(space.trace(*latent_part(model, z, data)), z)[0]  # noqa: E731
        slope = jnp.where(space.where(lambda name: name.endswith(NOISES)), 0.0, jax.grad(prior)(draw))
        trace = space.trace(model, draw, data)
        outcomes, scores = gaussians(trace), {}
        for name, site in trace.items():
            if site["type"] != "sample" or not site["is_observed"]:
                continue
            if name not in outcomes:
                raise ValueError(
                    f"Anchored: the outcomes {name!r} are {type(site['fn']).__name__}; noisy targets are known of "
                    "Normal and Student-t ones. Use Bootstrap() or RandomStarts()."
                )
            scores[name] = _score(jax.random.fold_in(key, len(scores)), outcomes[name])
        return Member(draw, data, Tilt(slope, scores))


def _score(key: PRNGKeyArray, site: Gaussian) -> Array:
    """The slope in its mean of the log density of noise drawn at random, in units of its scale."""
    if site.df is None:
        return jax.random.normal(key, site.mean.shape, site.mean.dtype)
    noise = jax.random.t(key, site.df, site.mean.shape, site.mean.dtype)
    return (site.df + 1) * noise / (site.df + noise**2)

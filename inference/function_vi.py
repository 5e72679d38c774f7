"""Function-space inference: a belief about a network whose prior is a belief about functions."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.input_measures import Box, JitteredData, Measure, Mixture
from physppl.data.transitions import Transitions
from physppl.density.curvature import Local
from physppl.density.mode import Mode, find_mode, unit_of
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.inference import function_space as algebra
from physppl.inference.function_objectives import FunctionObjective, Printed, Projected
from physppl.inference.function_space import Points, Slack, Told, Weights
from physppl.inference.laplace import Laplace, LaplacePosterior
from physppl.inference.network import NAME, Network, behind, bound
from physppl.internal import gaussians
from physppl.internal.precision import doubles
from physppl.language.noise import PROCESS
from physppl.posterior.backend import Backend, empty, fit, union
from physppl.posterior.posterior import Posterior
from physppl.posterior.verdict import DOUBTFUL, Figures, Reason

SHOWN = 16  # functions of the prior that features are learned from
MISSED = 0.1  # of a function prior's variance: a network with less cannot say within a tenth how sure the prior is
SEARCHES, EVALUATIONS = 4, 60  # for a noise that is not known


class FunctionSpaceVI(Backend["FunctionPosterior"]):
    """A network whose prior is a belief about functions (NLM-SIM2GP-FS of the SIM2GP paper).

    The function prior, by default the model's own belief before data, is turned into a Gaussian prior over the weights
    of a network's last layer, coupled over outputs; data update it. The belief is about that network as dynamics:
    `posterior.model` is another Dynamics than the model, with its spaces, step and process noise.

    Attributes:
        function_prior: any Posterior in the model's spaces, taken by its `basis`: exact moments where it is Gaussian,
            those of its draws elsewhere. "prior": `Laplace().prior` of the model. "conditioned": `Laplace` of the model
            on the data, as the paper may have meant; they then count twice, and the belief is surer than it may be.
        width, depth: of the network.
        features: fixed ones in its place: (state, action) -> (F,) for every output, or (D, P).
        measure: over inputs, where the network should be what the prior says.
        points: drawn from it.
        objective: `Projected()`, `JointKL()`, or `Printed()`, which is Equation 4 of the paper and collapses.
        slack: a Gaussian process that is added to the function prior: without it a network that is sure of its physics
            stays so.
        steps, rate: of Adam, by which the hidden layers learn to span functions of the prior; 0 steps leave them
            random. Data are not looked at.
    """

    function_prior: Posterior | Literal["prior", "conditioned"] = "prior"
    width: int = eqx.field(default=128, static=True)
    depth: int = eqx.field(default=1, static=True)
    features: Callable | None = eqx.field(default=None, static=True)
    measure: Measure = Mixture(Box(), JitteredData(), weights=(3.0, 1.0))
    points: int = eqx.field(default=2048, static=True)
    objective: FunctionObjective = Projected()
    slack: Slack | None = None
    steps: int = eqx.field(default=1000, static=True)
    rate: float = eqx.field(default=0.01, static=True)

    def __check_init__(self):
        if self.width < 1 or self.depth < 1 or self.points < 1 or self.steps < 0 or not 0 < self.rate < jnp.inf:
            raise ValueError(
                "FunctionSpaceVI needs width, depth, points >= 1, steps >= 0 and rate > 0; got "
                f"{self.width}, {self.depth}, {self.points}, {self.steps} and {self.rate}."
            )
        for name, kind, example in (
            ("measure", Measure, "Box()"),
            ("objective", FunctionObjective, "Projected()"),
            ("slack", Slack, "Slack(lengthscale=1.0, scale=0.01)"),
        ):
            given = getattr(self, name)
            if not isinstance(given, kind) and not (given is None and name == "slack"):
                raise TypeError(f"FunctionSpaceVI: {name} must be such as {example}; got {type(given).__name__}.")
        if not isinstance(self.function_prior, Posterior) and self.function_prior not in ("prior", "conditioned"):
            raise TypeError(
                "FunctionSpaceVI: function_prior must be a Posterior, such as Laplace().prior(key, model), 'prior' or "
                f"'conditioned'; got {self.function_prior!r}."
            )

    def network(self, model: Dynamics) -> Dynamics:
        """The dynamics that beliefs are about; what `physppl.load` takes to read one."""
        return bound(Network(behind(model), self.width, self.depth, self.features))

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> "FunctionPosterior":
        """The belief; raises TypeError and ValueError where model, data or function prior do not go together."""
        if not isinstance(model, Dynamics) or not isinstance(data, Transitions):
            raise TypeError(
                "FunctionSpaceVI takes a Dynamics and Transitions; got "
                f"{type(model).__name__} and {type(data).__name__}. Of recordings, use Laplace or HMC."
            )
        prior_key, measure_key, feature_key, noise_key = jax.random.split(key, 4)
        model, network = behind(model), self.network(model)
        program = network.program
        assert isinstance(program, Network)
        if self.points * len(model.state) < program.size:
            raise ValueError(
                f"FunctionSpaceVI: {self.points} points of {len(model.state)} coordinates cannot settle "
                f"{program.size} weights: raise `points`, or lower `width`."
            )
        prior = self.function_prior
        if not isinstance(prior, Posterior):
            prior = Laplace().fit(prior_key, model, data if prior == "conditioned" else doubles(empty(model)))
        _check_prior(prior, model)
        states, actions = self.measure.sample(measure_key, self.points, model, data)
        mean, factor = self._moments(prior, model, states, actions)
        hidden = None if self.features else self._learned(feature_key, program, states, actions, mean, factor)
        points = Points(program.design(hidden, states, actions), mean, factor)
        weights = self.objective.weights(points)

        scale, valid = model.state.scale, jnp.asarray(data.valid, float)
        values = (model.outcomes(data) - data.states) / scale
        design = program.design(hidden, data.states, data.actions)
        told = algebra.told(weights, design, values, valid)
        space = UnconstrainedSpace.of(network, data, params=_params(weights, hidden))
        chosen = _noise(noise_key, space, network, data, told)
        noise = network.bind(space.sites(network, chosen.point, data)).noise / scale
        factor = None
        if isinstance(self.objective, Printed):
            weights = Weights(jnp.zeros(program.size), jnp.eye(program.size))
            found = self.objective.solve(points, algebra.told(weights, design, values, valid), noise)
            center, precision, factor = found.mean, jnp.eye(program.size), found.factor.T
        else:
            center, precision = algebra.conditioned(told, noise)
        own = np.flatnonzero(space.where(NAME.__eq__))
        point = chosen.point.at[own].set(center)
        curvature = chosen.local.curvature.at[np.ix_(own, own)].set(precision)
        evidence = chosen.local.log_joint - told.rows * np.sum(np.log(scale))  # of values in their own units
        at_mode = evidence + gaussians.half_log_det(precision) - 0.5 * len(own) * np.log(2 * np.pi)
        found = chosen._replace(point=point, local=Local(at_mode, jnp.zeros_like(point), curvature))
        space = space.holding(_params(weights, hidden))
        share = algebra.missing_variance(points, algebra.regressed(points, 1e-8)) / algebra.typical(points.factor) ** 2
        return FunctionPosterior(network, data, space, found, share, factor)

    def update(self, key: PRNGKeyArray, posterior: Posterior, data) -> "FunctionPosterior":
        """The belief after more data: the same function prior, and the union of data."""
        return fit(key, behind(posterior.model), union(posterior.data, data), self)

    def _moments(self, prior: Posterior, model: Dynamics, states, actions):
        """Mean (M, D) and factor (M, D, R) of the change over a step, in units of the coordinates' scales."""
        mean, factor = prior._basis(states, actions, jnp.zeros(len(states)))
        mean, factor = (mean - states) / model.state.scale, factor / model.state.scale[:, None]
        if self.slack is None:
            return mean, factor
        inputs = jax.vmap(lambda x, u: jnp.concatenate([model.state.features(x), model.action.normalise(u)]))
        slack = self.slack.factor(inputs(states, actions), len(model.state))
        return mean, jnp.concatenate([factor, slack], axis=-1)

    def _learned(self, key: PRNGKeyArray, program: Network, states, actions, mean, factor) -> Array:
        """Hidden layers whose units span the mean and some functions of the prior."""
        start_key, key = jax.random.split(key)
        shown = factor @ jax.random.normal(key, (factor.shape[-1], SHOWN))
        targets = jnp.concatenate([mean[..., None], shown], axis=-1) / algebra.typical(factor)[:, None]
        units = lambda hidden: program.units(hidden, states, actions)  # noqa: E731
        return algebra.learned(units, program.draw(start_key), targets.reshape(len(mean), -1), self.steps, self.rate)


class FunctionPosterior(LaplacePosterior):
    """A Gaussian belief about a network's weights, exact where the process noise is known.

    Attributes:
        missed: (D,) share of the function prior's variance over the measure that the features do not span.
    """

    missed: Float[Array, " D"]

    def __init__(self, model, data, space: UnconstrainedSpace, found: Mode, missed, factor=None):
        super().__init__(model, data, space, found, linearised=False, method="FunctionSpaceVI", by_evidence=True)
        self.missed = missed
        if factor is not None:  # not a posterior of the network's own prior: no evidence belongs to it
            count, own = len(factor), np.flatnonzero(space.where(NAME.__eq__))
            self.factor = self.factor.at[np.ix_(own, own)].set(factor[:count])
            self.log_evidence = jnp.full((), jnp.nan)

    def findings(self) -> tuple[list[Reason], Figures]:
        share = float(np.max(np.asarray(self.missed)))
        if share <= MISSED:
            return [], {"missed": share}
        finding = f"the features miss {share:.0%} of the function prior's variance over the measure"
        remedy = "raise `width`, and with it `points` and `steps`, or give `features` that span the prior's functions"
        return [Reason(DOUBTFUL, finding, remedy)], {"missed": share}

    def facts(self) -> dict[str, float]:
        own = super().facts() | {"missed": float(np.max(np.asarray(self.missed)))}
        return {name: value for name, value in own.items() if np.isfinite(value)}


def _check_prior(prior: Posterior, model: Dynamics) -> None:
    other = prior.model
    if not isinstance(other, Dynamics):
        raise TypeError(f"FunctionSpaceVI: the function prior must be about a Dynamics; got {type(other).__name__}.")
    for name in ("state", "action", "dt"):
        theirs, ours = getattr(other, name), getattr(model, name)
        if theirs != ours:
            raise ValueError(
                f"FunctionSpaceVI: the function prior has {name} {theirs}, the model {ours}. Fit the prior with a "
                "Dynamics of the model's spaces and step."
            )


def _params(weights: Weights, hidden) -> dict[str, Array]:
    learned = {} if hidden is None else {f"{NAME}.features": hidden}
    return learned | {f"{NAME}.mean": weights.mean, f"{NAME}.factor": weights.factor}


def _noise(key: PRNGKeyArray, space: UnconstrainedSpace, network: Dynamics, data, told: Told) -> Mode:
    """Log evidence at the known noise, or at the maximum over one that has a prior, in virtual space.

    The point is zero but for the noise; curvature is that of the evidence, the identity for the weights.
    """
    free = np.flatnonzero(space.where(PROCESS.__eq__))
    scale = network.state.scale
    place = lambda z: jnp.zeros(space.size).at[free].set(z)  # noqa: E731

    def evidence(z):
        noise = network.bind(space.sites(network, place(z), data)).noise
        return algebra.log_evidence(told, noise / scale)

    if not len(free):
        none = jnp.zeros(space.size)
        return Mode(none, Local(evidence(none[free]), none, jnp.eye(space.size)), jnp.zeros(()), jnp.zeros((), int))
    draws = jax.vmap(lambda k: space.draw_prior(k, network, data)[free])(jax.random.split(key, 15))
    starts = draws.at[0].set(jnp.median(draws, axis=0))[:SEARCHES]

    def joint(z):
        return evidence(z) + space.log_prior(network, place(z), data)

    # Not side by side: jaxlib's batched factorisations wait for the threads they run on, and two of them at once, as
    # slope and curvature have, wait for ever where there are two cores.
    @jax.custom_batching.sequential_vmap
    def local(z):
        return Local(*jax.value_and_grad(joint)(z), -jax.hessian(joint)(z))

    found = find_mode(local, starts, unit_of(draws), EVALUATIONS)
    curvature = jnp.eye(space.size).at[np.ix_(free, free)].set(found.local.curvature)
    return found._replace(point=place(found.point), local=Local(found.local.log_joint, found.local.gradient, curvature))

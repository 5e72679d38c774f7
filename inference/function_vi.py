"""Function-space variational inference: the posterior of a network whose prior is given over functions."""

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
from physppl.inference.function_space import PriorPoints, Slack, SufficientStatistics, Weights
from physppl.inference.gaussian import LaplacePosterior
from physppl.inference.laplace import Laplace
from physppl.inference.network import NAME, Network, original, to_dynamics
from physppl.internal import gaussians
from physppl.internal.precision import doubles
from physppl.language.noise import PROCESS
from physppl.posterior.backend import Backend, empty, fit, union
from physppl.posterior.posterior import Posterior
from physppl.posterior.verdict import DOUBTFUL, Figures, Reason

TARGETS = 16  # prior functions that the features are trained to span
MISSED = 0.1  # share of a function prior's variance that features may miss before its sds are off by a tenth
SEARCHES, EVALUATIONS = 4, 60  # of the search for an unknown noise


class FunctionSpaceVI(Backend["FunctionPosterior"]):
    """A network whose prior is a distribution over functions (NLM-SIM2GP-FS of the SIM2GP paper).

    The function prior, by default the model's own prior, is turned into a Gaussian prior over the weights of a
    network's last layer, coupled over outputs; data update it. The posterior is that of the network as dynamics:
    `posterior.model` is another Dynamics than the model, with the same spaces, step and process noise.

    Attributes:
        function_prior: any Posterior in the model's spaces, taken by its `basis`: exact moments where it is Gaussian,
            those of its draws elsewhere. "prior": `Laplace().prior` of the model. "conditioned": `Laplace` of the model
            on the data, as the paper may have meant; the data then count twice, and the posterior is too narrow.
        width, depth: of the network.
        features: fixed features in place of the network: (state, action) -> (F,) for every output, or (D, P).
        measure: distribution over inputs at which the network should match the function prior.
        points: inputs drawn from the measure.
        objective: `Projected()`, `JointKL()`, or `Printed()`, which is Equation 4 of the paper and collapses.
        slack: a Gaussian process added to the function prior; without it a network with a narrow physics prior cannot
            represent errors of the physics.
        steps, rate: of Adam, which trains the hidden layers to span functions of the prior; 0 steps leave them
            random. Data are not used.
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
            value = getattr(self, name)
            if not isinstance(value, kind) and not (value is None and name == "slack"):
                raise TypeError(f"FunctionSpaceVI: {name} must be such as {example}; got {type(value).__name__}.")
        if not isinstance(self.function_prior, Posterior) and self.function_prior not in ("prior", "conditioned"):
            raise TypeError(
                "FunctionSpaceVI: function_prior must be a Posterior, such as Laplace().prior(key, model), 'prior' or "
                f"'conditioned'; got {self.function_prior!r}."
            )

    def network(self, model: Dynamics) -> Dynamics:
        """The network as Dynamics, the model of the posteriors; `physppl.load` needs it to read one."""
        return to_dynamics(Network(original(model), self.width, self.depth, self.features))

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> "FunctionPosterior":
        """Fit; raises TypeError and ValueError where model, data and function prior do not match."""
        if not isinstance(model, Dynamics) or not isinstance(data, Transitions):
            raise TypeError(
                "FunctionSpaceVI takes a Dynamics and Transitions; got "
                f"{type(model).__name__} and {type(data).__name__}. For recordings use Laplace or HMC."
            )
        prior_key, measure_key, feature_key, noise_key = jax.random.split(key, 4)
        model, network = original(model), self.network(model)
        program = network.program
        assert isinstance(program, Network)
        if self.points * len(model.state) < program.size:
            raise ValueError(
                f"FunctionSpaceVI: {self.points} points of {len(model.state)} coordinates cannot determine "
                f"{program.size} weights: raise `points`, or lower `width`."
            )
        prior, has_seen_data = self.function_prior, False
        if not isinstance(prior, Posterior):
            has_seen_data = prior == "conditioned"
            prior = Laplace().fit(prior_key, model, data if has_seen_data else doubles(empty(model)))
        _check_prior(prior, model)
        states, actions = self.measure.sample(measure_key, self.points, model, data)
        mean, factor = self._moments(prior, model, states, actions)
        hidden = None if self.features else self._learn_features(feature_key, program, states, actions, mean, factor)
        points = PriorPoints(program.design(hidden, states, actions), mean, factor)
        weights = self.objective.weights(points)

        scale, valid = model.state.scale, jnp.asarray(data.valid, float)
        values = (model.outcomes(data) - data.states) / scale
        design = program.design(hidden, data.states, data.actions)
        statistics = algebra.sufficient_statistics(weights, design, values, valid)
        space = UnconstrainedSpace.of(network, data, params=_params(weights, hidden))
        noise_mode = _noise_mode(noise_key, space, network, data, statistics)
        noise = network.bind(space.sites(network, noise_mode.point, data)).noise / scale
        factor = None
        if isinstance(self.objective, Printed):
            weights = Weights(jnp.zeros(program.size), jnp.eye(program.size))
            whitened = algebra.sufficient_statistics(weights, design, values, valid)
            optimum = self.objective.solve(points, whitened, noise)
            center, precision, factor = optimum.mean, jnp.eye(program.size), optimum.factor.T
        else:
            center, precision = algebra.conditioned(statistics, noise)
        entries = np.flatnonzero(space.where(NAME.__eq__))  # of the weights
        point = noise_mode.point.at[entries].set(center)
        curvature = noise_mode.local.curvature.at[np.ix_(entries, entries)].set(precision)
        # The log joint density for which LaplacePosterior's evidence is the exact one: log Z + log det(precision) / 2
        # - P log(2 pi) / 2, with Z in the outcomes' own units.
        evidence = noise_mode.local.log_joint - statistics.rows * np.sum(np.log(scale))
        at_mode = evidence + gaussians.half_log_det(precision) - 0.5 * len(entries) * np.log(2 * np.pi)
        mode = noise_mode._replace(point=point, local=Local(at_mode, jnp.zeros_like(point), curvature))
        space = space.holding(_params(weights, hidden))
        lost = algebra.residual_variance(points, algebra.regress_prior(points, 1e-8))
        posterior = FunctionPosterior(network, data, space, mode, lost / algebra.typical(points.factor) ** 2, factor)
        if has_seen_data:  # such a prior has no evidence in the same data
            posterior = eqx.tree_at(lambda p: p.log_evidence, posterior, jnp.full_like(posterior.log_evidence, jnp.nan))
        return posterior

    def update(self, key: PRNGKeyArray, posterior: Posterior, data) -> "FunctionPosterior":
        """Posterior after more data: a fit of the union of data with the same function prior."""
        return fit(key, original(posterior.model), union(posterior.data, data), self)

    def _moments(self, prior: Posterior, model: Dynamics, states, actions):
        """Prior mean (M, D) and factor (M, D, R) of the change over a step, in units of the coordinates' scales."""
        mean, factor = prior._basis(states, actions, jnp.zeros(len(states)))
        mean, factor = (mean - states) / model.state.scale, factor / model.state.scale[:, None]
        if self.slack is None:
            return mean, factor
        inputs = jax.vmap(lambda x, u: jnp.concatenate([model.state.features(x), model.action.normalise(u)]))
        slack = self.slack.factor(inputs(states, actions), len(model.state))
        return mean, jnp.concatenate([factor, slack], axis=-1)

    def _learn_features(self, key: PRNGKeyArray, program: Network, states, actions, mean, factor) -> Array:
        """Hidden layers whose units span the mean and some functions of the prior."""
        start_key, key = jax.random.split(key)
        functions = factor @ jax.random.normal(key, (factor.shape[-1], TARGETS))
        targets = jnp.concatenate([mean[..., None], functions], axis=-1) / algebra.typical(factor)[:, None]
        start, targets = program.draw(start_key), targets.reshape(len(mean), -1)
        return algebra.learn_features(
            lambda hidden: program.units(hidden, states, actions), start, targets, self.steps, self.rate
        )


class FunctionPosterior(LaplacePosterior):
    """A Gaussian posterior over a network's weights, exact where the process noise is known.

    Attributes:
        missed: (D,) share of the function prior's variance over the measure that the features do not span.
    """

    missed: Float[Array, " D"]

    def __init__(self, model, data, space: UnconstrainedSpace, mode: Mode, missed, factor=None):
        super().__init__(model, data, space, mode, linearised=False, method="FunctionSpaceVI", by_evidence=True)
        self.missed = missed
        if factor is not None:  # the optimum of another objective, which defines no evidence
            entries = np.flatnonzero(space.where(NAME.__eq__))
            self.factor = self.factor.at[np.ix_(entries, entries)].set(factor)
            self.log_evidence = jnp.full((), jnp.nan)

    def findings(self) -> tuple[list[Reason], Figures]:
        share = float(np.max(np.asarray(self.missed)))
        if share <= MISSED:
            return [], {"missed": share}
        finding = f"the features miss {share:.0%} of the function prior's variance over the measure"
        remedy = "raise `width`, and with it `points` and `steps`, or give `features` that span the prior's functions"
        return [Reason(DOUBTFUL, finding, remedy)], {"missed": share}

    def facts(self) -> dict[str, float]:
        facts = super().facts() | {"missed": float(np.max(np.asarray(self.missed)))}
        return {name: value for name, value in facts.items() if np.isfinite(value)}


def _check_prior(prior: Posterior, model: Dynamics) -> None:
    dynamics = prior.model
    if not isinstance(dynamics, Dynamics):
        raise TypeError(f"FunctionSpaceVI: the function prior must be about a Dynamics; got {type(dynamics).__name__}.")
    for name in ("state", "action", "dt"):
        got, expected = getattr(dynamics, name), getattr(model, name)
        if got != expected:
            raise ValueError(
                f"FunctionSpaceVI: the function prior has {name} {got}, the model {expected}. Fit the prior with a "
                "Dynamics of the model's spaces and step."
            )


def _params(weights: Weights, hidden) -> dict[str, Array]:
    features = {} if hidden is None else {f"{NAME}.features": hidden}
    return features | {f"{NAME}.mean": weights.mean, f"{NAME}.factor": weights.factor}


def _noise_mode(
    key: PRNGKeyArray, space: UnconstrainedSpace, network: Dynamics, data, statistics: SufficientStatistics
) -> Mode:
    """Log evidence at a known noise, or its maximum over a noise that has a prior, in unconstrained space.

    The point is zero in all entries but the noise's; the curvature is that of the evidence, the identity for weights.
    """
    free = np.flatnonzero(space.where(PROCESS.__eq__))
    scale = network.state.scale

    def embed(z):
        return jnp.zeros(space.size).at[free].set(z)

    def evidence(z):
        noise = network.bind(space.sites(network, embed(z), data)).noise
        return algebra.log_evidence(statistics, noise / scale)

    if not len(free):
        zero = jnp.zeros(space.size)
        return Mode(zero, Local(evidence(zero[free]), zero, jnp.eye(space.size)), jnp.zeros(()), jnp.zeros((), int))
    draws = space.prior_draws(key, 15, network, data)[:, free]
    starts = draws.at[0].set(jnp.median(draws, axis=0))[:SEARCHES]

    def joint(z):
        return evidence(z) + space.log_prior(network, embed(z), data)

    # One start at a time: jaxlib's batched factorisations wait for worker threads, and two concurrent ones, as those of
    # gradient and Hessian, deadlock on a machine with two cores.
    @jax.custom_batching.sequential_vmap
    def local(z):
        return Local(*jax.value_and_grad(joint)(z), -jax.hessian(joint)(z))

    mode = find_mode(local, starts, unit_of(draws), EVALUATIONS)
    curvature = jnp.eye(space.size).at[np.ix_(free, free)].set(mode.local.curvature)
    return mode._replace(point=embed(mode.point), local=Local(mode.local.log_joint, mode.local.gradient, curvature))

"""The neural linear model: Gaussian weights on features that maximise the evidence."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from physppl.inference.evidence import maximise
from physppl.inference.gaussian import LaplacePosterior
from physppl.internal.errors import Status
from physppl.posterior.backend import Backend, one_machine

LEFT = 0.5  # nats that the last steps may gain of a climb that has ended


class NeuralLinear(Backend[LaplacePosterior]):
    """Last-layer Gaussian weights and physics, if any, jointly; features and noises by type-II maximum likelihood.

    The program's `param` sites (`residual(..., learned=True)`: hidden layers and prior sd) and its noises maximise the
    evidence; parameters and weights have the Gaussian posterior of `Laplace` given these, exact for the weights of a
    step residual. With `step_residual(physics, ...)` this is NLM-SIM2GP-RES (Eq. 3 of J. Watson et al.,
    "Tractable Bayesian Dynamics Priors from Differentiable Physics"): the physics are updated together with the
    weights, and the covariance between them shows which directions the data do not separate.

    Away from data such features may vanish together with their uncertainty (S. Thakur et al., "Uncertainty-Aware
    (UNA) Bases for Deep Bayesian Regression", 2021): `FunctionSpaceVI` is the remedy.

    Attributes:
        steps: of the maximisation.
        rate: step size of Adam.
        linearised: draws of the linearised function, as in `Laplace`.
    """

    steps: int = eqx.field(default=500, static=True)
    rate: float = eqx.field(default=0.02, static=True)
    linearised: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        if self.steps < 0 or not 0 < self.rate < jnp.inf:
            raise ValueError(f"NeuralLinear needs steps >= 0 and rate > 0; got {self.steps} and {self.rate}.")

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> LaplacePosterior:
        """Fit.

        Raises:
            TypeError: for models that are not a Dynamics, and data that are not Transitions of one machine.
        """
        model = one_machine("NeuralLinear", model, data)
        space, mode, gained = maximise(key, model, data, self.steps, self.rate)
        posterior = LaplacePosterior(model, data, space, mode, self.linearised, "NeuralLinear", by_evidence=True)
        climbing = (posterior.status == Status.OK) & (gained > LEFT)
        return eqx.tree_at(lambda p: p.status, posterior, jnp.where(climbing, Status.CLIMBING, posterior.status))

"""A posterior and a kind of data of one's own, by the documented contracts alone: see docs/extending.md.

They stand in a module that can be imported, since a saved posterior names its classes; examples/own_parts_run.py uses
them.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import physppl as pp
from physppl.data.data import Data
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics.likelihood import Likelihood


class StrideLikelihood(Likelihood):
    """End of each stride: the rollout from its start, and the process noise of all its steps."""

    site = "end"
    axis = "state"

    def space(self, dynamics):
        return dynamics.state

    def check(self, dynamics, data):
        if data.actions.shape[-1] != len(dynamics.action):
            raise ValueError(
                f"strides: actions must have {len(dynamics.action)} columns; got {data.actions.shape[-1]}."
            )

    def observe(self, dynamics, data):
        transition = dynamics.bind(dynamics.declare(data).values)
        ends = jax.vmap(lambda start, actions: pp.rollout(transition, start, actions)[-1])(data.starts, data.actions)
        sd = jnp.sqrt(data.actions.shape[-2]) * transition.noise
        with numpyro.plate("stride", len(data)):
            return numpyro.sample(self.site, dist.Normal(ends, sd).to_event(1).mask(data.valid), obs=data.ends)


class Strides(Data):
    """States of a machine K steps apart, and the actions between them: what a slow sensor sees.

    Attributes:
        starts: (N, D).
        actions: (N, K, A), each held for one step.
        ends: (N, D), or None.
        valid: (N,) bool.
    """

    likelihood = StrideLikelihood()
    row = part = "stride"
    outcome_field = "ends"

    starts: Any
    actions: Any
    ends: Any
    valid: Any

    def __init__(self, starts, actions, ends=None, valid=None):
        self.starts, self.actions, self.ends = starts, actions, ends
        self.valid = np.ones(len(starts), bool) if valid is None else valid

    def __len__(self):
        return len(self.starts)

    @property
    def inputs(self):
        return Strides(self.starts, self.actions, None, self.valid)

    @property
    def outcomes(self):
        return self.ends

    def with_outcomes(self, outcomes):
        return Strides(self.starts, self.actions, outcomes, self.valid)

    def bucketed(self, step):
        del step
        extra = (1 << (len(self) - 1).bit_length()) - len(self)
        padded = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], extra, axis=0)]), self)
        return eqx.tree_at(lambda d: d.valid, padded, np.arange(len(padded)) < len(self))

    def join(self, other):
        valid = jax.tree.map(lambda x: np.asarray(x)[np.asarray(self.valid)], self)
        return jax.tree.map(lambda a, b: np.concatenate([a, b]), valid, other)

    def parts(self):
        columns = [np.reshape(x, (len(self), -1)) for x in (self.starts, self.actions, self.ends)]
        rows = np.concatenate(columns, axis=1).astype(np.float32)
        return [row.tobytes() for row in rows[np.asarray(self.valid)]]


class Shortlist(pp.Backend):
    """Prior draws weighted by their likelihood: a finite list of candidate machines."""

    candidates: int = eqx.field(default=200, static=True)

    def fit(self, key, model, data):
        space = UnconstrainedSpace.of(model, data)
        points = jax.vmap(lambda k: space.draw_prior(k, model, data))(jax.random.split(key, self.candidates))
        logs = jax.lax.map(lambda z: space.log_densities(space.trace(model, z, data), z)[1], points)
        sites = jax.vmap(lambda z: space.sites(model, z, data))(points)
        return ShortlistPosterior(model, data, jnp.asarray(int(pp.Status.OK)), "Shortlist", sites, jax.nn.softmax(logs))


class ShortlistPosterior(pp.Posterior):
    """Candidate machines and their weights; it gives the four methods of a posterior and nothing more.

    Attributes:
        sites: {site: values (K, ...)}.
        weights: (K,), of sum one.
    """

    sites: dict
    weights: jax.Array

    def _pick(self, key, count):
        return jax.random.choice(key, len(self.weights), (count,), p=self.weights)

    def _draw(self, key):
        index = self._pick(key, 1)[0]
        return self.model.bind(jax.tree.map(lambda x: x[index], self.sites))

    def _basis(self, states, actions, times):
        def step(sites):
            return jax.vmap(self.model.bind(sites).stepper())(times, states, actions)

        ends = jax.vmap(step)(self.sites)
        mean = jnp.tensordot(self.weights, ends, axes=1)
        return mean, jnp.moveaxis(jnp.sqrt(self.weights)[:, None, None] * (ends - mean), 0, -1)

    def _samples(self, key, draws):
        index = self._pick(key, draws)
        return jax.tree.map(lambda x: x[index][None], self.sites)

    def _noise(self):
        noise = jax.vmap(lambda sites: self.model.bind(sites).noise)(self.sites)
        return jnp.sqrt(self.weights @ noise**2)

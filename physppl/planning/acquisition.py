"""Acquisition rules: choice of the transition function that an agent acts on."""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from physppl.internal.choices import Choices
from physppl.language.transition import AbstractTransition, SwitchingTransition
from physppl.posterior.posterior import Posterior


class Acquisition(Choices):
    """Rule that takes transition functions of a posterior, for an episode or for a stage of it.

    Attributes:
        every: control steps of a stage, after which another function is taken; None: one for the whole episode.
    """

    every: eqx.AbstractVar[int | None]

    @abstractmethod
    def __call__(self, key: PRNGKeyArray, posterior: Posterior) -> AbstractTransition:
        """One transition function."""

    def stages(self, key: PRNGKeyArray, posterior: Posterior, steps: int) -> AbstractTransition:
        """Transitions (S, K, ...) of an episode: S stages of `every` steps each, K particles."""
        count = 1 if self.every is None else -(-steps // self.every)
        keys = jax.random.split(key, count) if count > 1 else [key]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(self.particles(k, posterior) for k in keys))

    def particles(self, key: PRNGKeyArray, posterior: Posterior) -> AbstractTransition:
        """Transitions (K, ...) that planners average over; K = 1 unless a subclass takes more."""
        return self(key, posterior).particles()


class Thompson(Acquisition):
    """Coherent draws of the posterior (W. Thompson 1933; for dynamics M. Strens, ICML 2000).

    Attributes:
        draws: how many; the planner averages over them, and so prefers actions that do well under all.
    """

    every: int | None = eqx.field(default=None, static=True)
    draws: int = eqx.field(default=1, static=True)

    def __check_init__(self):
        if self.every is not None and self.every < 1:
            raise ValueError(f"Acquisition: every must be at least 1 control step, or None; got {self.every}.")
        if self.draws < 1:
            raise ValueError(f"{type(self).__name__}: draws must be at least 1; got {self.draws}.")

    def __call__(self, key: PRNGKeyArray, posterior: Posterior) -> AbstractTransition:
        return posterior.draw(key)

    def particles(self, key: PRNGKeyArray, posterior: Posterior) -> AbstractTransition:
        if self.draws == 1:
            return self(key, posterior).particles()
        return posterior.draws(key, self.draws)


class TrajectorySampling(Thompson):
    """Particles that each follow a function of the posterior, averaged over by the planner (K. Chua et al., "PETS",
    NeurIPS 2018). An ensemble's particles are its members, in equal numbers.

    Attributes:
        draws: how many.
        switch: False, each particle keeps its function for the whole rollout (TS-infinity), so that epistemic
            uncertainty is constant along it. True, it changes function at every step (TS1), as if that were noise.
    """

    draws: int = eqx.field(default=8, static=True)
    switch: bool = eqx.field(default=False, static=True)

    def particles(self, key: PRNGKeyArray, posterior: Posterior) -> AbstractTransition:
        draw_key, switch_key = jax.random.split(key)
        members = posterior.draws(draw_key, self.draws)
        if not self.switch:
            return members
        return jax.vmap(lambda k: SwitchingTransition.of(members, k))(jax.random.split(switch_key, self.draws))


class PosteriorMean(Acquisition):
    """The posterior's mean function: certainty equivalence, without deliberate exploration."""

    every: int | None = eqx.field(default=None, static=True)

    def __call__(self, key: PRNGKeyArray, posterior: Posterior) -> AbstractTransition:
        del key
        return posterior.mean()


class UserRule(Acquisition):
    """Rule given by a user's function.

    Attributes:
        rule: (key, posterior) -> transition.
    """

    rule: Callable[[PRNGKeyArray, Posterior], AbstractTransition] = eqx.field(static=True)
    every: int | None = eqx.field(default=None, static=True)

    def __call__(self, key: PRNGKeyArray, posterior: Posterior) -> AbstractTransition:
        return self.rule(key, posterior)

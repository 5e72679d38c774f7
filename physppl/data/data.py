"""The contract of recorded data: what fits, updates, summaries, files and comparisons ask of every kind."""

from abc import abstractmethod
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, PRNGKeyArray

from physppl.internal.precision import ExactPickle


class Data(ExactPickle, eqx.Module):
    """Inputs of a machine, what was recorded of them, and which of these outcomes count.

    A kind of data is a subclass, beside the `physppl.dynamics.likelihood.Likelihood` that observes it. Implementers
    give what is abstract here; the rest has defaults.

    Attributes:
        valid: (..., N) bool; False marks padding and what does not count.
        likelihood: of a kind of data outside this library, the Likelihood object that observes it.
        row: name of one outcome, for messages and as a dimension in ArviZ.
        part: name of one independent part, for messages.
        outcome_field: name of the argument that holds the outcomes, for messages.
        sequential: a density runs along time through all outcomes, and costs far more than arithmetic on each alone.
    """

    likelihood: ClassVar[Any] = None
    row: ClassVar[str]
    part: ClassVar[str]
    outcome_field: ClassVar[str]
    sequential: ClassVar[bool] = False

    valid: eqx.AbstractVar[Any]

    @abstractmethod
    def __len__(self) -> int:
        """Rows, padding included."""

    @property
    @abstractmethod
    def inputs(self) -> "Data":
        """The same inputs without outcomes, for `numpyro.infer.Predictive`."""

    @property
    @abstractmethod
    def outcomes(self) -> Any:
        """What was recorded, (..., N, d), or None: inputs alone."""

    @abstractmethod
    def with_outcomes(self, outcomes) -> "Data":
        """The same inputs with these outcomes."""

    @abstractmethod
    def bucketed(self, step: float) -> "Data":
        """Padded to one of a few lengths, so that growing data rarely compile anew; padding is not valid.

        Args:
            step: s, of a Dynamics: how time goes on where the data do not say.
        """

    @abstractmethod
    def join(self, other: Any) -> "Data":
        """These data, padding dropped where it can be, and others of the same kind, as one."""

    @abstractmethod
    def parts(self) -> list[bytes]:
        """The content of each independent part that counts, by which repeated data are recognised."""

    @property
    def machines(self) -> tuple[int, ...]:
        """Leading axes of a fleet; () for one machine."""
        return ()

    @property
    def count(self) -> int:
        """Outcomes that count."""
        return int(np.sum(self.valid))

    def describe(self) -> str:
        """How much there is, e.g. '40 transitions'."""
        return f"{self.count} {self.row}{'' if self.count == 1 else 's'}"

    def notice(self) -> str | None:
        """Remark that a fit logs where the data are nearly nothing."""
        return None if self.count else f"no {self.row}s: the prior"

    def groups(self) -> Int[np.ndarray, " n"] | None:
        """Independent part to which each outcome that counts belongs; None: each outcome is one."""
        return None

    def coordinates(self) -> dict[str, np.ndarray]:
        """{name: values of each outcome that counts}, beside the outcomes in ArviZ."""
        return {}

    def resampled(self, key: PRNGKeyArray) -> "Data":
        """As many parts, drawn with replacement from those that count (the bootstrap of B. Efron, 1979)."""
        raise TypeError(f"{type(self).__name__} cannot be resampled: use Anchored() or RandomStarts().")


def is_sequential(data) -> bool:
    """True for data whose density runs along time, and costs far more than arithmetic on each outcome."""
    return isinstance(data, Data) and data.sequential


def repeats(known, data) -> int:
    """Number of parts of `data` that `known` holds too."""
    if data is None or type(known) is not type(data) or not isinstance(data, Data):
        return 0
    seen = set(known.parts())
    return sum(part in seen for part in data.parts())


def drawn_rows(key: PRNGKeyArray, valid, count: int) -> Int[Array, " count"]:
    """Indices of valid rows, drawn with replacement; where there is none, of any."""
    first = jnp.argsort(~valid, stable=True)
    return first[jax.random.randint(key, (count,), 0, jnp.maximum(jnp.sum(valid), 1))]

"""The contract of recorded data, on which fits, updates, summaries, files and comparisons rely."""

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
    """Inputs of a machine, the outcomes recorded for them, and a mask of the outcomes that count.

    A kind of data is a subclass, with a `physppl.dynamics.likelihood.Likelihood` that observes it. Implementers define
    the abstract members; the rest has defaults.

    Attributes:
        valid: (..., N) bool; False marks padding and outcomes to be ignored.
        likelihood: the Likelihood object that observes a kind of data from outside this library; else None.
        row: name of one outcome, for messages and as a dimension in ArviZ.
        part: name of one independent part, for messages.
        outcome_field: name of the field that holds the outcomes.
        sequential: True where the density is a recursion along time, far costlier than arithmetic on each outcome.
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
    def outcomes(self) -> Any:
        """Recorded outcomes (..., N, d); None for inputs alone."""
        return getattr(self, self.outcome_field)

    @abstractmethod
    def with_outcomes(self, outcomes) -> "Data":
        """The same inputs with these outcomes."""

    @abstractmethod
    def bucketed(self, step: float) -> "Data":
        """A copy padded to one of a few lengths, so that growing data rarely recompile; padding is not valid.

        Args:
            step: of the Dynamics, s; spacing of the padding's times where the data have none.
        """

    @abstractmethod
    def join(self, other: Any) -> "Data":
        """These data and others of the same kind as one object, without padding where possible."""

    @abstractmethod
    def parts(self) -> list[bytes]:
        """Content of each independent part that counts, by which repeated data are recognised."""

    @property
    def machines(self) -> tuple[int, ...]:
        """Leading axes of a fleet; () for one machine."""
        return ()

    @property
    def count(self) -> int:
        """Outcomes that count."""
        return int(np.sum(self.valid))

    def describe(self) -> str:
        """The amount of data in words, e.g. '40 transitions'."""
        return f"{self.count} {self.row}{'' if self.count == 1 else 's'}"

    def notice(self) -> str | None:
        """Remark that a fit logs where there are hardly any data, else None."""
        return None if self.count else f"no {self.row}s: the prior"

    def groups(self) -> Int[np.ndarray, " n"] | None:
        """Index of the independent part of each outcome that counts; None where every outcome is independent."""
        return None

    def coordinates(self) -> dict[str, np.ndarray]:
        """{name: values of each outcome that counts}, beside the outcomes in ArviZ."""
        return {}

    def resampled(self, key: PRNGKeyArray) -> "Data":
        """A bootstrap sample: as many parts, drawn with replacement from those that count (B. Efron, 1979)."""
        raise TypeError(f"{type(self).__name__} cannot be resampled: use Anchored() or RandomStarts().")


def is_sequential(data) -> bool:
    """True for data whose density is a recursion along time, far costlier than arithmetic on each outcome."""
    return isinstance(data, Data) and data.sequential


def repeats(known, data) -> int:
    """Number of parts of `data` that `known` contains already."""
    if data is None or type(known) is not type(data) or not isinstance(data, Data):
        return 0
    seen = set(known.parts())
    return sum(part in seen for part in data.parts())


def drawn_rows(key: PRNGKeyArray, valid, count: int) -> Int[Array, " count"]:
    """Indices of valid rows drawn with replacement; of any row where none is valid."""
    first = jnp.argsort(~valid, stable=True)
    return first[jax.random.randint(key, (count,), 0, jnp.maximum(jnp.sum(valid), 1))]

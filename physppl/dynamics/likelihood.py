"""The contract of a likelihood: how one kind of data enters a Dynamics as observed sites."""

import enum
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from physppl.data.data import Data
from physppl.data.spaces import StateSpace
from physppl.language.program import Record


class Dependence(enum.Enum):
    """Dependence between outcomes at given parameters, by which a density is differentiated.

    ROWS is for data laid out as Transitions, RECORDINGS as Trajectories; other kinds are JOINT.
    """

    ROWS = "each outcome depends on its own inputs alone"
    RECORDINGS = "outcomes of one recording depend on each other"
    JOINT = "outcomes may all depend on each other"


D = TypeVar("D", bound=Data)


class Likelihood(ABC, Generic[D]):
    """The observed site of one kind of data; stateless, one object per kind.

    Where the site is Normal or Student-t (masked, `to_event`), its mean, scale and degrees of freedom are the moments
    from which Fisher information is built; for other distributions the exact Hessian is used.

    Attributes:
        site: name of the observed site.
        axis: name of the outcomes' coordinate axis in ArviZ.
        dependence: between outcomes; JOINT is always valid, and the slowest.
    """

    site: ClassVar[str]
    axis: ClassVar[str]
    dependence: ClassVar[Dependence] = Dependence.JOINT

    @abstractmethod
    def space(self, dynamics) -> StateSpace:
        """Coordinates of one outcome."""

    @abstractmethod
    def check(self, dynamics, data: D) -> None:
        """Refuse data that do not fit the dynamics.

        Raises:
            ValueError: naming row and coordinate, with the remedy.
        """

    @abstractmethod
    def observe(self, dynamics, data: D) -> Any:
        """Declare the dynamics' sites, then observe the outcomes, or draw them where they are None."""

    def declare(self, dynamics, record: Record, data: D) -> None:
        """Sample the latent sites that this kind of data adds to the program's; none by default."""
        return None

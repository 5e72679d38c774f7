"""Steps of a solver that chooses their length itself, for stiff fields and for fast motions between samples."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class Adaptive:
    """A diffrax solver with an adaptive step: `Dynamics(..., solver=Adaptive(diffrax.Kvaerno5()))`.

    Over one dt it takes as many steps as its tolerances ask for. Where `max_steps` do not suffice, or an implicit
    equation is not solved, the next state is NaN: a fit does not go there, and ends with a status if it can go nowhere.

    Attributes:
        solver: explicit, such as `diffrax.Tsit5()`, or implicit for stiff fields, such as `diffrax.Kvaerno5()`.
        rtol, atol: tolerated error of a step, relative, and absolute in the coordinates' units.
        max_steps: over one dt; memory and time of derivatives grow with it.
    """

    solver: Any
    rtol: float = 1e-6
    atol: float = 1e-9
    max_steps: int = 4096

    def __post_init__(self):
        if not isinstance(self.solver, diffrax.AbstractAdaptiveSolver):
            raise ValueError(
                "Adaptive takes a diffrax solver object with an error estimate, e.g. diffrax.Kvaerno5(); got "
                f"{self.solver!r}."
            )
        if not (self.rtol > 0 and self.atol > 0 and self.max_steps >= 1):
            got = f"rtol={self.rtol}, atol={self.atol}, max_steps={self.max_steps}"
            raise ValueError(f"Adaptive needs positive tolerances and max_steps >= 1; got {got}.")

    def __str__(self) -> str:
        return f"{type(self.solver).__name__} to {self.rtol:g}"

    def finer(self, times: int) -> "Adaptive":
        """The same solver with tolerances that are the square of `times` smaller."""
        return replace(self, rtol=self.rtol / times**2, atol=self.atol / times**2)

    def advance(self, slope, t, x: Array, u, length) -> Array:
        """The state after `length` seconds; NaN where the solver fails."""

        def solve(t, x):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(slope), self.solver, t, t + length, None, x, u,
                stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
                saveat=diffrax.SaveAt(t1=True), max_steps=self.max_steps, throw=False,
                adjoint=diffrax.DirectAdjoint(),  # differentiates in both modes
            )  # fmt: skip
            return jax.tree.leaves(solution.ys)[0][-1], solution.result

        return guarded(solve, t, x)


def guarded(solve: Callable[[Array, Array], tuple[Array, diffrax.RESULTS]], t, x: Array) -> Array:
    """The state that a solver of diffrax reaches from x; NaN where it fails, or where x is not finite.

    From a state that is not finite it is not started: derivatives of its linear equations would raise an error.
    """
    finite = jnp.all(jnp.isfinite(x))
    after, result = solve(jnp.asarray(t, x.dtype), jnp.where(finite, x, 0.0))
    return jnp.where(finite & (result == diffrax.RESULTS.successful), after, jnp.nan)

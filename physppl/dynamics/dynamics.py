"""Dynamics: a program bound to spaces, a step and a noise, and a NumPyro model of one data object."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Float

from physppl.data.checks import check_widths
from physppl.data.data import Data
from physppl.data.spaces import ActionSpace, StateSpace
from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.dynamics.likelihood import Likelihood
from physppl.dynamics.one_step import OneStep
from physppl.dynamics.recordings import FilteredReadings
from physppl.dynamics.sensors import Sensing, of_program
from physppl.internal.errors import closest
from physppl.internal.keys import content
from physppl.language.adaptive import Adaptive
from physppl.language.integrate import RK4, Stepper, stepper
from physppl.language.noise import PROCESS as NOISE
from physppl.language.noise import Scale
from physppl.language.program import Program, Record, note_units, rebuild, visitor
from physppl.language.program_errors import explained
from physppl.language.transition import Transition

LIKELIHOODS: dict[type, Likelihood[Any]] = {
    Transitions: OneStep(),
    Trajectories: FilteredReadings(),
}


class Dynamics:
    """A program bound to its spaces: `Dynamics(program, state, action, dt=0.05)`.

    `dynamics(data)` is a NumPyro model: the program's sites, `process_noise` where it is not known, and the observed
    site `next_state` with one log-likelihood per transition. It works alone (`MCMC(NUTS(dynamics)).run(key, data)`)
    and as a statement of a larger model, in plates and under handlers.

    Args:
        program: () -> field(t, state, action), a `Step`, or `step_residual(...)`.
        state, action: the spaces.
        dt: step, s; the action is held over [t, t + dt).
        solver: a diffrax solver, whose steps are fixed; explicit Runge-Kutta methods are unrolled from their tableau.
            `Adaptive(solver)` chooses its steps, as stiff fields need.
        substeps: solver steps per dt.
        process_noise: sd of the next state over one dt. A NumPyro distribution is the prior of each coordinate's sd
            in units of its `scale`; a float, or one per coordinate, is known and in the coordinates' own units.
        sensors: sensors of Trajectories: names of state coordinates, or a StateSpace with `observe`. All coordinates
            by default.
        observe: state (D,) -> readings (d,), in the order and units of `sensors`.
        measurement_noise: sd of a reading, as `process_noise`, in units of the sensors' scales.
        measurement_df: degrees of freedom of heavy-tailed (Student-t) readings, above 2; None is Gaussian.
        measurement_resolution: distance of two neighbouring readings of sensors that round, in their own units: one
            for all, or {sensor: distance}. It is worth saying where it exceeds the noise.
        measurement_limits: (low, high) of sensors that saturate, for all or as {sensor: (low, high)}: a reading at a
            limit tells that the value lies there or beyond.
        input_delay: samples between a recorded input and its effect; a NumPyro distribution is its prior, fractions
            included.
        input_gain_error: sd of the input's error as a fraction of the input: an actuator that gives more or less than
            it is commanded.
        input_timing_error: sd of the input's error as a fraction of its change since the last sample: clocks that
            jitter.
        variation: sd, in unconstrained space, of the machine's parameters from one recording to the next; where it has
            a prior, each parameter has its own.

    Raises:
        TypeError: for spaces of the wrong kind.
        ValueError: for a dt, substeps or noise that is not positive.
    """

    content_is_public = True  # private attributes are derived

    def __init__(
        self,
        program: Program,
        state: StateSpace,
        action: ActionSpace,
        *,
        dt: float,
        solver: diffrax.AbstractSolver | Adaptive | None = None,
        substeps: int = 1,
        process_noise: Any = None,
        sensors: StateSpace | Sequence[str] | None = None,
        observe: Callable[[Array], Array] | None = None,
        measurement_noise: Any = None,
        measurement_df: float | None = None,
        measurement_resolution: Any = None,
        measurement_limits: Any = None,
        input_delay: Any = 0,
        input_gain_error: Any = None,
        input_timing_error: Any = None,
        variation: Any = None,
        **unknown,
    ):
        options = {k: v for k, v in locals().items() if k not in ("self", "program", "state", "action", "unknown")}
        self._options = options  # for `rebound`
        self.program, self.state, self.action = program, state, action
        self.dt, self.solver, self.substeps = float(dt), RK4() if solver is None else solver, int(substeps)
        self.name = getattr(program, "__name__", type(program).__name__)
        if not callable(program):
            raise ValueError(f"Dynamics: program must be a function () -> field; got {type(program).__name__}.")
        for name in unknown:
            raise TypeError(f"{self.owner} takes no argument {name!r}.{closest(name, options)}")
        if not (isinstance(state, StateSpace) and isinstance(action, ActionSpace)):
            got = f"{type(state).__name__} and {type(action).__name__}"
            raise TypeError(f"Dynamics({self.name}) takes a StateSpace, then an ActionSpace; got {got}.")
        if not isinstance(self.solver, diffrax.AbstractSolver | Adaptive):
            raise TypeError(
                f"Dynamics({self.name}): solver must be a diffrax solver object, e.g. diffrax.Tsit5(), or Adaptive "
                "around one."
            )
        if isinstance(self.solver, Adaptive) and substeps != 1:
            raise ValueError(f"Dynamics({self.name}): Adaptive chooses its steps; leave out substeps={substeps}.")
        if not 0 < self.dt < np.inf:
            raise ValueError(f"Dynamics({self.name}): dt must be positive seconds; got {dt}.")
        if self.substeps < 1 or self.substeps != substeps:
            raise ValueError(f"Dynamics({self.name}): substeps must be an integer of at least 1; got {substeps}.")
        self.noise = Scale.of(
            NOISE, dist.HalfNormal(0.1) if process_noise is None else process_noise,
            state.scale, ", ".join(state.units), self.owner,
        )  # fmt: skip
        self.sensing = Sensing.of(self, options)
        self._content = content((program, state, action, self.dt, self.solver, self.substeps, self.noise, self.sensing))

    def __eq__(self, other) -> bool:
        return isinstance(other, Dynamics) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    def __repr__(self) -> str:
        fixed = f"{type(self.solver).__name__} x {self.substeps}"
        solver = self.solver if isinstance(self.solver, Adaptive) else fixed
        return f"Dynamics({self.name}: {', '.join(self.state.names)}; dt={self.dt:g} s, {solver})"

    @property
    def owner(self) -> str:
        """Name of these dynamics in error messages."""
        return f"Dynamics({self.name})"

    @property
    def knows_noise(self) -> bool:
        """True if the process noise is known rather than inferred."""
        return self.noise.known

    def rebound(self, **changes) -> "Dynamics":
        """The same dynamics, with some arguments changed."""
        bound = {"program": self.program, "state": self.state, "action": self.action}
        return Dynamics(**(bound | self._options | changes))

    def without_variation(self) -> "Dynamics":
        """The same dynamics without variation of parameters between recordings."""
        return self if self.sensing.variation is None else self.rebound(variation=None)

    def sites(self, data: Data | None = None) -> dict[str, Array]:
        """Sites of the model without outcomes, {site: value}: the program's, and each noise that is not known.

        The sensors' sites are among them where `data` are Trajectories.
        """
        return self.declare(data).values

    def declare(self, data: Data | None = None) -> Record:
        """Run the program and sample the other latent sites, recording all of them."""
        with Record(self.owner) as record:
            self.program()
            self.noise.sample()
            if data is not None:
                self.likelihood(data).declare(self, record, data)
        self.note_units(record)
        return record

    def likelihood(self, data) -> Likelihood[Any]:
        """The likelihood of this kind of data.

        Raises:
            TypeError: for an object that is not data, or data of a kind without a likelihood.
        """
        of_kind = (LIKELIHOODS[kind] for kind in type(data).__mro__ if kind in LIKELIHOODS)
        likelihood = getattr(data, "likelihood", None) or next(of_kind, None)
        if likelihood is None:
            kinds = "Transitions(states=, actions=, next_states=) or Trajectories(observations=, actions=, times=)"
            hint = ""
            if isinstance(data, list | tuple) and data:
                kind = type(data[0]).__name__
                join = {"Trajectories": "Trajectories.stack", "Transitions": "Transitions.concatenate"}.get(kind)
                hint = f" Join several of one machine: {join}(parts)." if join else ""
            elif type(data).__module__.split(".")[0] in ("pandas", "xarray", "numpy", "builtins"):
                hint = " Tables and dicts are read by Trajectories.read(source, dynamics) or Transitions.read."
            raise TypeError(f"{self.owner} takes {kinds}; got {type(data).__name__}.{hint}")
        return likelihood

    def __call__(self, data: Data) -> Any:
        """Declare the sites and observe the outcomes, or draw them for `data.inputs`.

        Transitions observe `next_state`, Trajectories `observation`, one log-likelihood per row; the kind of data picks
        the likelihood.

        Returns:
            the next states or readings, with the batch layout of the site.
        """
        if (visit := visitor()) is not None:
            return visit(self, data)
        self.check(data)
        return self.likelihood(data).observe(self, data)

    def outcomes(self, data: Transitions) -> Float[Array, "*B N D"]:
        """Next states with angles on the branch nearest to their states', so that only differences wrap."""
        states = jnp.asarray(data.states, float)
        return states + self.state.difference(jnp.asarray(data.next_states, float), states)

    def stepper(self, values: Mapping[str, Array]) -> Stepper:
        """The step (t, state, action) -> next state at given values of the program's sites.

        Raises:
            KeyError: for a missing or an unknown site, with close matches.
        """
        field = rebuild(self.program, values, self.owner)
        return stepper(field, self.dt, self.solver, self.substeps, self.name)

    def bind(self, sites: Mapping[str, Array]) -> Transition:
        """The transition function at site values as `sites` returns them: pure and unchecked, for backends."""
        values = {k: v for k, v in sites.items() if of_program(k)}
        return Transition(values, self.noise.value(sites), self)

    def transition(self, sites: Mapping[str, Any], noise: Any = None) -> Transition:
        """The transition function at known site values, e.g. the truth of a simulation.

        Args:
            sites: {site: value}; `process_noise` may be among them.
            noise: process-noise sd (D,) or scalar, in the coordinates' units; by default the site's, the known one,
                or zero.

        Raises:
            KeyError: for a missing or an unknown site, with close matches.
        """
        dtype = jnp.result_type(float)
        values = {k: jnp.asarray(v, dtype) for k, v in sites.items()}
        site_noise = values.pop(NOISE, self.noise.prior if self.knows_noise else 0.0)
        with explained(self.owner):
            jax.eval_shape(lambda v: (self.stepper(v), jnp.zeros(()))[1], values)  # checks names
        noise = jnp.broadcast_to(jnp.asarray(site_noise if noise is None else noise, dtype), (len(self.state),))
        return Transition(values, noise, self)

    def check(self, data: Data) -> None:
        """Refuse data that do not fit the spaces.

        Raises:
            TypeError: for anything but Transitions and Trajectories.
            ValueError: naming the row and coordinate of what is missing, not finite or out of bounds.
        """
        self.likelihood(data).check(self, data)

    def check_widths(self, states, actions) -> None:
        """Refuse states (..., D) and actions (..., A) whose last axis does not fit the spaces.

        Raises:
            ValueError: naming the argument and the coordinates.
        """
        check_widths(states, actions, self.state, self.action, self.owner)

    def check_point(self, state, action, where: str) -> None:
        """Refuse anything but one state (D,) and one action (A,).

        Raises:
            ValueError: naming the argument, its coordinates and its shape.
        """
        for argument, value, space in (("state", state, self.state), ("action", action, self.action)):
            if jnp.shape(value) != (len(space),):
                names, shape = ", ".join(space.names), jnp.shape(value)
                raise ValueError(
                    f"{where} of {self.name}: one {argument} is ({len(space)},) ({names}); got shape {shape}. "
                    "Use jax.vmap for many."
                )

    def note_units(self, record: Record) -> None:
        """Report the units of a run's sites to the unit tables among the outer handlers."""
        noises = (self.noise, *self.sensing.noises)
        noise_units = {name: noise.units for name in record.units for noise in noises if name.endswith(noise.name)}
        note_units(record.units | noise_units)

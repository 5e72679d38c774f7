"""Dynamics: a program bound to spaces, a step and a noise; itself a NumPyro model of one data object."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Float

from physppl.data.checks import check_data, check_widths
from physppl.data.spaces import ActionSpace, StateSpace
from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.dynamics import recordings
from physppl.dynamics.sensors import Sensing, of_program
from physppl.internal.keys import content
from physppl.language.integrate import RK4, Stepper, stepper
from physppl.language.noise import PROCESS as NOISE
from physppl.language.noise import Scale
from physppl.language.plates import PlateLayout
from physppl.language.program import Program, Record, note_units, rebuild, refuse_unknown, visitor
from physppl.language.transition import Transition


class Dynamics:
    """A program bound to its spaces: `Dynamics(program, state, action, dt=0.05)`.

    `dynamics(data)` is a NumPyro model: the program's sites, `process_noise` where it is not known, and the observed
    site `next_state` with one log-likelihood per transition. It works alone (`MCMC(NUTS(dynamics)).run(key, data)`)
    and as a statement of a larger model, in plates and under handlers.

    Args:
        program: () -> field(t, state, action), a `Step`, or `step_residual(...)`.
        state, action: the spaces.
        dt: step, s; the action is held over [t, t + dt).
        solver: a diffrax solver; explicit Runge-Kutta methods are unrolled from their tableau.
        substeps: solver steps per dt.
        process_noise: sd of the next state over one dt. A NumPyro distribution is the prior of each coordinate's sd
            in units of its `scale`; a float, or one per coordinate, is known and in the coordinates' own units.
        sensors: what Trajectories record: names of state coordinates, or a StateSpace with `observe`. All coordinates
            by default.
        observe: state (D,) -> readings (d,), in the order and units of `sensors`.
        measurement_noise: sd of a reading, as `process_noise`, in units of the sensors' scales.
        recording: how recordings were made (`physppl.dynamics.sensors.Sensing`): measurement_df, input_delay,
            input_gain_error, input_timing_error, variation.

    Raises:
        TypeError: for spaces of the wrong kind.
        ValueError: for a dt, substeps or noise that is not positive.
    """

    def __init__(
        self,
        program: Program,
        state: StateSpace,
        action: ActionSpace,
        *,
        dt: float,
        solver: diffrax.AbstractSolver | None = None,
        substeps: int = 1,
        process_noise: Any = None,
        sensors: StateSpace | Sequence[str] | None = None,
        observe: Callable[[Array], Array] | None = None,
        measurement_noise: Any = None,
        **recording,
    ):
        self.program, self.state, self.action = program, state, action
        self.dt, self.solver, self.substeps = float(dt), RK4() if solver is None else solver, int(substeps)
        self.name = getattr(program, "__name__", type(program).__name__)
        if not callable(program):
            raise ValueError(f"Dynamics: program must be a function () -> field; got {type(program).__name__}.")
        if not (isinstance(state, StateSpace) and isinstance(action, ActionSpace)):
            got = f"{type(state).__name__} and {type(action).__name__}"
            raise TypeError(f"Dynamics({self.name}) takes a StateSpace, then an ActionSpace; got {got}.")
        if not isinstance(self.solver, diffrax.AbstractSolver):
            raise TypeError(f"Dynamics({self.name}): solver must be a diffrax solver object, e.g. diffrax.Tsit5().")
        if not 0 < self.dt < np.inf:
            raise ValueError(f"Dynamics({self.name}): dt must be positive seconds; got {dt}.")
        if self.substeps < 1 or self.substeps != substeps:
            raise ValueError(f"Dynamics({self.name}): substeps must be an integer of at least 1; got {substeps}.")
        self.noise = Scale.of(
            NOISE, dist.HalfNormal(0.1) if process_noise is None else process_noise,
            state.scale, ", ".join(state.units), f"Dynamics({self.name})",
        )  # fmt: skip
        self.sensing = Sensing.of(self, sensors, observe, measurement_noise, **recording)
        self._content = content((program, state, action, self.dt, self.solver, self.substeps, self.noise, self.sensing))

    def __eq__(self, other) -> bool:
        return isinstance(other, Dynamics) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    def __repr__(self) -> str:
        solver = type(self.solver).__name__
        return f"Dynamics({self.name}: {', '.join(self.state.names)}; dt={self.dt:g} s, {solver} x {self.substeps})"

    @property
    def knows_noise(self) -> bool:
        """Whether the process noise is given rather than inferred."""
        return self.noise.known

    def rebound(self, **changes) -> "Dynamics":
        """The same program and spaces, with some arguments changed."""
        sensing = self.sensing
        own = {
            "dt": self.dt,
            "solver": self.solver,
            "substeps": self.substeps,
            NOISE: self.noise.prior,
            "sensors": sensing.space.names if sensing.observe is None else sensing.space,
            "observe": sensing.observe,
            "measurement_df": sensing.df,
            "input_delay": sensing.delay,
        }
        own |= {noise.name: noise.prior for noise in sensing.noises}
        return Dynamics(self.program, self.state, self.action, **(own | changes))

    def without_variation(self) -> "Dynamics":
        """The same for one recording, whose parameters do not vary."""
        return self if self.sensing.variation is None else self.rebound(variation=None)

    def sites(self, data: Transitions | Trajectories | None = None) -> dict[str, Array]:
        """The model without outcomes: {site of the program: value}, and of each noise that is not known.

        The sensors' sites are among them where `data` are Trajectories.
        """
        record = self.declare(data)
        return record.values

    def declare(self, data: Transitions | Trajectories | None = None) -> Record:
        """Run the program and sample what else is latent, recorded."""
        with Record(f"Dynamics({self.name})") as record:
            self.program()
            self.noise.sample()
            if isinstance(data, Trajectories):
                recordings.sample(self.sensing, record, data)
        note_units(record.units | self._noise_units(record))
        return record

    def __call__(self, data: Transitions | Trajectories) -> Any:
        """The one sample statement: declares the sites and observes (or, for `data.inputs`, draws) the outcomes.

        Transitions observe `next_state`, Trajectories `observation`, one log-likelihood per row.

        Returns:
            the next states or readings, with the batch layout of the site.
        """
        if (visit := visitor()) is not None:
            return visit(self, data)
        self.check(data)
        if isinstance(data, Trajectories):
            return recordings.observe(self, data)
        rows = len(data)
        with Record(f"Dynamics({self.name})") as record:
            self.program()
            self.noise.sample()
            transitions = numpyro.plate("transition", rows) if rows else None
        refuse_unknown(self, record.names | {"next_state"}, f"Dynamics({self.name})")
        note_units(record.units | self._noise_units(record))
        if transitions is None:  # no data: the prior
            return None
        layout = PlateLayout(record.frames["transition"], transitions.dim, data.batch_shape, self.name)
        values = {k: layout.lead(v, record.event_dims[k], record.own_dims[k]) for k, v in record.values.items()}
        noise = self.noise.value(values)
        values.pop(NOISE, None)

        def means(values, states, actions, times):
            step = self.stepper(values)
            return jax.vmap(step, in_axes=(0, 0, 0))(times, states, actions)

        for _ in layout.sizes:
            means = jax.vmap(means)
        states, actions, times = (jnp.asarray(x, float) for x in (data.states, data.actions, data.times))
        mean = means(values, states, actions, times)
        outcomes = None if data.next_states is None else layout.place(self.outcomes(data), 1)
        if noise.ndim > 1:  # one per machine
            noise = layout.place(jnp.expand_dims(noise, -2), 1)
        likelihood = dist.Normal(layout.place(mean, 1), noise).to_event(1)
        with transitions:
            valid = layout.place(jnp.asarray(data.valid), 0)
            return jnp.asarray(numpyro.sample("next_state", likelihood.mask(valid), obs=outcomes))

    def outcomes(self, data: Transitions) -> Float[Array, "*B N D"]:
        """Next states on the branch nearest their states: only differences of angles wrap."""
        states = jnp.asarray(data.states, float)
        return states + self.state.difference(jnp.asarray(data.next_states, float), states)

    def stepper(self, values: Mapping[str, Array]) -> Stepper:
        """The step (t, state, action) -> next state at given values of the program's sites.

        Raises:
            KeyError: for a missing or an unknown site, with close matches.
        """
        field = rebuild(self.program, values, f"Dynamics({self.name})")
        return stepper(field, self.dt, self.solver, self.substeps, self.name)

    def bind(self, sites: Mapping[str, Array]) -> Transition:
        """The transition function at the values that `sites` gave: pure, unchecked, for backends."""
        own = {k: v for k, v in sites.items() if of_program(k)}
        return Transition(own, self.noise.value(sites), self)

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
        own = values.pop(NOISE, self.noise.prior if self.knows_noise else 0.0)
        jax.eval_shape(lambda v: (self.stepper(v), jnp.zeros(()))[1], values)  # names are checked now, not at first use
        noise = jnp.broadcast_to(jnp.asarray(own if noise is None else noise, dtype), (len(self.state),))
        return Transition(values, noise, self)

    def check(self, data: Transitions | Trajectories) -> None:
        """Refuse data that do not fit the spaces.

        Raises:
            TypeError: for anything but Transitions and Trajectories.
            ValueError: naming the row and coordinate of what is missing, not finite or out of bounds.
        """
        if isinstance(data, Trajectories):
            return self.sensing.check(self, data)
        check_data(data, self.state, self.action, f"Dynamics({self.name})")

    def check_widths(self, states, actions) -> None:
        """Refuse states (..., D) and actions (..., A) that are not of the spaces, by their shapes alone.

        Raises:
            ValueError: naming the argument and the coordinates.
        """
        check_widths(states, actions, self.state, self.action, f"Dynamics({self.name})")

    def check_point(self, state, action, where: str) -> None:
        """Refuse anything but one state (D,) and one action (A,).

        Raises:
            ValueError: naming the argument, its coordinates and the shape that came.
        """
        for argument, value, space in (("state", state, self.state), ("action", action, self.action)):
            if jnp.shape(value) != (len(space),):
                names, shape = ", ".join(space.names), jnp.shape(value)
                raise ValueError(
                    f"{where} of {self.name}: one {argument} is ({len(space)},) ({names}); got shape {shape}. "
                    "Use jax.vmap for many."
                )

    def _noise_units(self, record: Record) -> dict[str, str]:
        noises = (self.noise, *self.sensing.noises)
        return {name: noise.units for name in record.units for noise in noises if name.endswith(noise.name)}

"""The one-step likelihood of transitions: next state = F(state, action) + process noise, one term per row."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from physppl.data.checks import check_transitions
from physppl.data.spaces import StateSpace
from physppl.data.transitions import Transitions
from physppl.dynamics.likelihood import Dependence, Likelihood
from physppl.internal.errors import is_concrete
from physppl.language.noise import PROCESS
from physppl.language.plates import PlateLayout
from physppl.language.program import Record, refuse_unknown


class OneStep(Likelihood[Transitions]):
    """Likelihood of Transitions: the site `next_state`, in one plate per leading axis of the data."""

    site = "next_state"
    axis = "state"
    dependence = Dependence.ROWS

    def space(self, dynamics) -> StateSpace:
        return dynamics.state

    def check(self, dynamics, data: Transitions) -> None:
        check_transitions(data, dynamics.state, dynamics.action, dynamics.dt, dynamics.owner)
        delay = dynamics.sensing.delay
        if (isinstance(delay, int) and delay == 0) or data.next_states is None or not is_concrete(data.valid):
            return
        if not np.any(np.asarray(data.valid)):  # of an array of JAX, np.any alone would be traced
            return
        raise ValueError(
            f"{dynamics.owner}: input_delay={delay if isinstance(delay, int) else '<a prior>'}, which transitions "
            "cannot have: each next state answers the action of its own row. Give the states as readings of "
            "Trajectories; or pair each state with the action that reached the machine, and leave input_delay out."
        )

    def observe(self, dynamics, data: Transitions) -> Any:
        rows = len(data)
        with Record(dynamics.owner) as record:
            dynamics.program()
            dynamics.noise.sample()
            transitions = numpyro.plate("transition", rows) if rows else None
        refuse_unknown(dynamics, record.names | {self.site}, dynamics.owner)
        dynamics.note_units(record)
        if transitions is None:  # no data: the prior
            return None
        layout = PlateLayout(record.frames["transition"], transitions.dim, data.batch_shape, dynamics.name)
        values = {k: layout.lead(v, record.event_dims[k], record.own_dims[k]) for k, v in record.values.items()}
        noise = dynamics.noise.value(values)
        values.pop(PROCESS, None)

        def means(values, states, actions, times):
            step = dynamics.stepper(values)
            return jax.vmap(step, in_axes=(0, 0, 0))(times, states, actions)

        for _ in layout.sizes:
            means = jax.vmap(means)
        states, actions, times = (jnp.asarray(x, float) for x in (data.states, data.actions, data.times))
        mean = means(values, states, actions, times)
        outcomes = None if data.next_states is None else layout.place(dynamics.outcomes(data), 1)
        if noise.ndim > 1:  # one per machine
            noise = layout.place(jnp.expand_dims(noise, -2), 1)
        likelihood = dist.Normal(layout.place(mean, 1), noise).to_event(1)
        with transitions:
            valid = layout.place(jnp.asarray(data.valid), 0)
            return jnp.asarray(numpyro.sample(self.site, likelihood.mask(valid), obs=outcomes))

"""What an agent remembers: the transitions of all its episodes."""

import numpy as np

from physppl.control.episodes import Episode
from physppl.data.transitions import Transitions
from physppl.dynamics import Dynamics


class Memory:
    """Room for the transitions of all episodes, allocated once; rows count when they are filled."""

    def __init__(self, dynamics: Dynamics, steps: int, episodes: int, data: Transitions | None):
        known = 0 if data is None else len(data)
        rows, state, action = known + steps * episodes, len(dynamics.state), len(dynamics.action)
        rest = np.broadcast_to((dynamics.action.low + dynamics.action.high) / 2, (rows, action))
        self.states, self.next_states = np.zeros((rows, state)), np.zeros((rows, state))
        self.actions, self.valid, self.filled = rest.copy(), np.zeros(rows, bool), 0
        self.times = np.concatenate([np.zeros(known), np.tile(dynamics.dt * np.arange(steps), episodes)])
        if data is not None:
            self._append(data.states, data.actions, data.next_states, data.valid)
            self.times[:known] = data.times

    def add(self, record: Episode) -> None:
        """The transitions of an episode, or of several side by side."""
        flat = lambda x, axes: np.asarray(x).reshape(-1, *np.shape(x)[-axes:])  # noqa: E731
        states, actions, valid = flat(record.states, 2), flat(record.actions, 2), flat(record.valid, 1)
        for one, action, counts in zip(states, actions, valid, strict=True):
            self._append(one[:-1], action, one[1:], counts)

    def _append(self, states, actions, next_states, valid) -> None:
        rows = slice(self.filled, self.filled + len(states))
        self.states[rows], self.actions[rows] = states, actions
        self.next_states[rows], self.valid[rows] = next_states, valid
        self.filled = rows.stop

    def data(self) -> Transitions:
        """A copy of what is remembered, empty rows included: the same shape from the first episode to the last."""
        copies = (self.states.copy(), self.actions.copy(), self.next_states.copy())
        return Transitions(*copies, valid=self.valid.copy(), times=self.times.copy())

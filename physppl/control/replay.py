"""Replay buffer: the transitions of all episodes of an agent."""

import numpy as np

from physppl.control.episodes import Episode
from physppl.data.transitions import Transitions
from physppl.dynamics import Dynamics


class ReplayBuffer:
    """Transitions of all episodes in arrays allocated once; rows are valid once they are filled."""

    def __init__(self, dynamics: Dynamics, steps: int, episodes: int, data: Transitions | None):
        known = 0 if data is None else len(data)
        rows, state, action = known + steps * episodes, len(dynamics.state), len(dynamics.action)
        idle = np.broadcast_to((dynamics.action.low + dynamics.action.high) / 2, (rows, action))
        self.states, self.next_states = np.zeros((rows, state)), np.zeros((rows, state))
        self.actions, self.valid, self.filled = idle.copy(), np.zeros(rows, bool), 0
        self.times = np.concatenate([np.zeros(known), np.tile(dynamics.dt * np.arange(steps), episodes)])
        if data is not None:
            self._append(data.states, data.actions, data.next_states, data.valid)
            self.times[:known] = data.times

    def add(self, record: Episode) -> None:
        """Append the transitions of an episode, or of several in parallel."""
        fields = ((record.states, 2), (record.actions, 2), (record.valid, 1))
        batched = (np.asarray(x).reshape(-1, *np.shape(x)[-axes:]) for x, axes in fields)
        for states, actions, valid in zip(*batched, strict=True):
            self._append(states[:-1], actions, states[1:], valid)

    def _append(self, states, actions, next_states, valid) -> None:
        rows = slice(self.filled, self.filled + len(states))
        self.states[rows], self.actions[rows] = states, actions
        self.next_states[rows], self.valid[rows] = next_states, valid
        self.filled = rows.stop

    def data(self) -> Transitions:
        """Copy of the buffer, empty rows included: the same shape from the first episode to the last."""
        copies = (self.states.copy(), self.actions.copy(), self.next_states.copy())
        return Transitions(*copies, valid=self.valid.copy(), times=self.times.copy())

"""Checks of what Python code observes and returns: readings become arrays, mistakes errors that name their method."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from physppl.control.systems import HostStep, HostSystem

GYMNASIUM = "Gymnasium's tuples are read by physppl.control.gym.GymSystem(env, dynamics)."


class CheckedStep(NamedTuple):
    """Result of one step of a host system, every part an array of B machines."""

    states: Float[np.ndarray, "B D"]
    rewards: Float[np.ndarray, " B"] | None
    terminated: Bool[np.ndarray, " B"]
    truncated: Bool[np.ndarray, " B"]


class CheckedHost:
    """Host system whose results are checked at once, before anything compiles for them, and copied.

    Args:
        names: coordinates of the agent's state.

    Raises:
        ValueError: for a `batch` that is no number of machines.
    """

    def __init__(self, system: HostSystem, names: Sequence[str]):
        self._system, self._names, self._class = system, names, type(system).__name__
        if isinstance(system.batch, bool) or not isinstance(system.batch, int | np.integer) or system.batch < 1:
            raise ValueError(f"{self._class}.batch is the number of machines, from 1 on; got {system.batch!r}.")
        self.batch = int(system.batch)

    def reset(self, seed: int) -> Float[np.ndarray, "B D"]:
        """Begin an episode.

        Raises:
            TypeError: where `reset` returns no array.
            ValueError: where the array has the wrong shape.
            FloatingPointError: where a state is not finite.
        """
        where = f"{self._class}.reset"
        states = self._states(self._system.reset(seed), where, f"Return them alone, as one array. {GYMNASIUM}")
        _check_finite(states, self._names, where, "the beginning", "wait in `reset` until the sensor has a reading")
        return states

    def step(
        self, actions: Float[np.ndarray, "B A"], last: Float[np.ndarray, "B D"], alive: Bool[np.ndarray, " B"], at: int
    ) -> CheckedStep:
        """Act once. Machines whose episode is over keep their last states and get no reward.

        Args:
            last: states before the step.
            alive: False where the episode is over.
            at: number of this step, from 1 on.

        Raises:
            TypeError: where `step` returns neither a HostStep nor an array of states, or what is no number.
            ValueError: where a part has the wrong shape.
            FloatingPointError: where a state or a reward is not finite.
        """
        where, after = f"{self._class}.step", self._system.step(actions)
        after = after if isinstance(after, HostStep) else HostStep(after)
        remedy = (
            "Return the states alone, or HostStep(states, rewards=..., terminated=..., truncated=...), where all but "
            f"the states may be left out. {GYMNASIUM}"
        )
        states = np.where(alive[:, None], self._states(after.states, where, remedy), last)
        ended, cut = (self._flags(after[i], f"{where}: {HostStep._fields[i]}") for i in (2, 3))
        _check_finite(
            states, self._names, where, f"step {at}", "check the sensor, or end the episode with the last state"
        )
        return CheckedStep(states, self._rewards(after.rewards, where, alive, at), ended, cut)

    def _states(self, value: Any, where: str, remedy: str) -> np.ndarray:
        count = len(self._names)
        what = f"{where} must return states ({self.batch}, {count}), per machine one row ({', '.join(self._names)})"
        states = real_array(value, what, remedy)
        if states.shape == (self.batch, count):
            return states
        if self.batch == 1 and states.shape == (count,):
            remedy = "One machine is one row: return states[None]."
        elif states.shape == (self.batch,) or states.shape[-1:] not in ((), (count,)):
            remedy = "What the machine observes is made the state of the agent's dynamics there, in this order."
        else:
            remedy = f"`batch` of {self._class}, the number of machines, is {self.batch}."
        raise ValueError(f"{what}; got shape {states.shape}. {remedy}")

    def _rewards(self, value: Any, where: str, alive: np.ndarray, at: int) -> np.ndarray | None:
        if value is None:
            return None
        rewards = real_array(
            value, f"{where}: rewards must be ({self.batch},)", "Leave them out for those of the task."
        )
        if rewards.shape not in ((self.batch,), ()) or (rewards.shape == () and self.batch > 1):
            raise ValueError(
                f"{where}: rewards must be ({self.batch},), one per machine; got shape {rewards.shape}. Leave them out "
                "for those of the task."
            )
        rewards = np.where(alive, rewards, 0.0)
        if not np.all(np.isfinite(rewards)):
            machine = int(np.argmin(np.isfinite(rewards)))
            raise FloatingPointError(f"{where}: the reward is {rewards[machine]} at step {at} (machine {machine}).")
        return rewards

    def _flags(self, value: Any, where: str) -> np.ndarray:
        flags = real_array(
            value, f"{where} must be True or False, or ({self.batch},) of them", "Leave it out for False."
        )
        if flags.shape not in ((), (self.batch,)) or not np.all((flags == 0) | (flags == 1)):
            got = f"shape {flags.shape}" if flags.shape not in ((), (self.batch,)) else f"{flags}"
            raise ValueError(f"{where} must be True or False, or ({self.batch},) of them, one per machine; got {got}.")
        return np.broadcast_to(flags.astype(bool), (self.batch,))


def real_array(value: Any, what: str, remedy: str) -> np.ndarray:
    """Copy of an array or of nested lists as floats.

    Args:
        what: sentence of an error, up to what came: "Rig.reset must return ...".
        remedy: its last sentences.

    Raises:
        TypeError: for tuples, whose parts have meanings of their own, None, texts, complex numbers, ragged lists.
    """
    got = type(value).__name__
    if isinstance(value, tuple):
        raise TypeError(f"{what}; got a tuple of {len(value)} ({', '.join(type(x).__name__ for x in value)}). {remedy}")
    try:
        array = np.asarray(value)
    except ValueError:
        raise TypeError(f"{what}; got a ragged {got}. {remedy}") from None
    if value is None or array.dtype.kind not in "fiub":
        missing = " (is there a `return`?)" if value is None else f" of dtype {array.dtype}" if array.ndim else ""
        raise TypeError(f"{what}; got {got}{missing}. {remedy}")
    return np.array(array, float)  # a copy: machines overwrite their state in place


def check_observation(observation: Any, names: Sequence[str]) -> Float[np.ndarray, " D"]:
    """One observed state (D,) for an agent.

    Raises:
        TypeError: for what is no array.
        ValueError: for another shape.
        FloatingPointError: where it is not finite.
    """
    what = f"act: one observation is ({len(names)},) ({', '.join(names)})"
    remedy = "For other observations pass agent(key, from_observation=...)."
    state = real_array(observation, what, remedy)
    if state.shape != (len(names),):
        raise ValueError(f"{what}; got shape {state.shape}. {remedy}")
    _check_finite(state[None], names, "act", "this step", "hold the last action until the sensor has a reading")
    return state


def _check_finite(states: np.ndarray, names: Sequence[str], where: str, when: str, remedy: str) -> None:
    bad = np.argwhere(~np.isfinite(states))
    if len(bad):
        machine, i = bad[0]
        raise FloatingPointError(
            f"{where}: {names[i]!r} is {states[machine, i]} at {when} (machine {machine}). No plan can start there: "
            f"{remedy}."
        )

"""What Python code returns as a machine: what may be left out, and what is refused before anything compiles."""

import jax
import numpy as np
import pytest

import physppl as pp
from physppl.control.agent import Agent
from physppl.control.episodes import check_match
from physppl.inference import Laplace
from physppl.internal.progress import compile_clock
from physppl.models import pendulum
from physppl.planning import RandomPolicy, RandomShooting
from physppl.planning.objectives import Constrained

TASK = pp.Task(lambda x, u: x[0], 20)
TRANSITION = pendulum.system().transition
YES, NO, STATES = np.ones(1, bool), np.zeros(1, bool), np.zeros((1, 2))


class Hardware(pp.HostSystem):
    """Answers what it is told to: to every reset the first, then one a step, of which the last stays."""

    def __init__(self, first, *answers, batch=1):
        self._first, self._answers, self.batch, self._resets = first, list(answers), batch, 0

    def reset(self, seed):
        self._resets += 1
        return self._first

    def step(self, actions):
        assert actions.shape == (self.batch, 1)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def play(system, steps=3) -> pp.Episode:
    task = pp.Task(TASK.reward, steps)
    return pp.episode(jax.random.key(0), system, task, RandomPolicy(), TRANSITION)


RESETS = {
    "one row missing": (np.zeros(2), ValueError, r"Hardware.reset must return states \(1, 2\).*states\[None\]"),
    "Gymnasium's": ((np.zeros(2), {}), TypeError, r"a tuple of 2 \(ndarray, dict\).*GymSystem\(env, dynamics\)"),
    "coordinates": (np.zeros((1, 3)), ValueError, r"one row \(angle, velocity\); got shape \(1, 3\).*in this order"),
    "machines": (np.zeros((4, 2)), ValueError, r"got shape \(4, 2\). `batch` of Hardware, .* is 1"),
    "a number": (0.0, ValueError, r"got shape \(\)"),
    "nothing": (None, TypeError, r"got NoneType \(is there a `return`\?\)"),
    "texts": ([["1.0", "2.0"]], TypeError, "got list of dtype <U3"),
    "complex": (np.zeros((1, 2), complex), TypeError, "got ndarray of dtype complex128"),
    "ragged": ([[0.0], [0.0, 1.0]], TypeError, "a ragged list"),
    "a dict": ({"angle": 0.0}, TypeError, "got dict"),
    "not finite": ([[0.0, np.nan]], FloatingPointError, r"Hardware.reset: 'velocity' is nan at the beginning"),
}


@pytest.mark.parametrize("first, error, message", RESETS.values(), ids=RESETS)
def test_a_reset_is_refused_before_anything_compiles(first, error, message):
    system = Hardware(first, STATES)
    jax.random.randint(jax.random.split(jax.random.key(0))[0], (), 0, 2)  # the seed's own programs
    jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)
    jax.random.fold_in(jax.random.key(0), 0)
    planner = RandomShooting(horizon=3, population=8)
    with compile_clock() as clock:
        with pytest.raises(error, match=message):
            pp.psrl(jax.random.key(0), system, TASK, pendulum.dynamics(), Laplace(starts=1), planner, 1)
        with pytest.raises(error, match=message):
            pp.episode(jax.random.key(0), system, TASK, planner, TRANSITION)
    assert clock.seconds < 0.5  # no fit, no planner


STEPS = {
    "Gymnasium's": ((np.zeros(2), 0.0, False, False, {}), TypeError, "step must.* a tuple of 5 .*HostStep.*GymSystem"),
    "a plain tuple": ((STATES, None, NO, NO), TypeError, "a tuple of 4"),
    "one row missing": (np.zeros(2), ValueError, r"Hardware.step must return states \(1, 2\).*states\[None\]"),
    "rewards": (pp.HostStep(STATES, np.zeros((1, 1))), ValueError, r"step: rewards must be \(1,\).*shape \(1, 1\)"),
    "a reward's nan": (pp.HostStep(STATES, np.nan), FloatingPointError, r"reward is nan at step 1 \(machine 0\)"),
    "flags": (pp.HostStep(STATES, None, np.zeros(2, bool)), ValueError, r"terminated must .* got shape \(2,\)"),
    "a flag's value": (pp.HostStep(STATES, truncated=17), ValueError, "truncated must be True or False.* got 17"),
    "a flag's type": (pp.HostStep(STATES, truncated="no"), TypeError, "truncated must be True or False.* got str"),
}


@pytest.mark.parametrize("answer, error, message", STEPS.values(), ids=STEPS)
def test_a_step_is_refused_at_once(answer, error, message):
    with pytest.raises(error, match=message):
        play(Hardware(STATES, answer))


def test_a_reading_that_is_lost_is_named_with_its_step():
    with pytest.raises(FloatingPointError, match=r"step: 'velocity' is nan at step 2 \(machine 0\).*check the sensor"):
        play(Hardware(STATES, STATES, np.array([[0.0, np.nan]])))


def test_a_reward_for_all_of_several_machines_is_refused():
    states = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"rewards must be \(3,\), one per machine; got shape \(\)"):
        play(Hardware(states, pp.HostStep(states, 1.0), batch=3))
    with pytest.raises(ValueError, match=r"Hardware.batch is the number of machines, from 1 on; got 0"):
        play(Hardware(states, states, batch=0))


def test_all_but_the_states_may_be_left_out():
    moved = [[0.5, -1.0]]  # of nested lists as of arrays
    whole = play(Hardware(STATES, pp.HostStep(np.array(moved), None, NO, NO)))
    for answer in (moved, np.array(moved, np.float32), pp.HostStep(moved), pp.HostStep(moved, terminated=False)):
        record = play(Hardware(STATES.tolist(), answer))
        assert np.array_equal(record.states, whole.states) and np.array_equal(record.rewards, whole.rewards)
        assert record.valid.all() and not record.terminated
    assert np.allclose(whole.rewards, 0.5)  # the task's


def test_one_flag_holds_for_all_machines_and_one_reward_for_one():
    states = np.zeros((3, 2))
    record = play(Hardware(states, states, pp.HostStep(states, np.arange(3.0), truncated=True), batch=3))
    assert np.array_equal(record.valid, [[True, True, False]] * 3) and not record.terminated.any()
    record = play(Hardware(STATES, pp.HostStep(STATES, 2.0), pp.HostStep(STATES, np.ones(1), YES)))
    assert float(record.returns) == 3.0 and record.terminated


def test_a_machine_whose_episode_is_over_may_return_anything_finite_or_not():
    before, after = np.zeros((2, 2)), np.array([[np.nan, np.nan], [1.0, 1.0]])
    ends = pp.HostStep(before, terminated=np.array([True, False]))
    record = play(Hardware(before, ends, pp.HostStep(after, [np.nan, 1.0]), batch=2))
    assert np.all(np.isfinite(record.states)) and np.array_equal(record.returns, [0.0, 2.0])


class InPlace(pp.HostSystem):
    """Counts in the array that it returns."""

    def __init__(self):
        self._state = np.zeros((1, 2))

    def reset(self, seed):
        self._state[:] = 0.0
        return self._state

    def step(self, actions):
        self._state += 1.0
        return self._state


def test_a_state_that_the_machine_overwrites_was_copied():
    assert np.array_equal(play(InPlace()).states[:, 0], [0.0, 1.0, 2.0, 3.0])


def test_no_machine_waits_for_a_compiler():
    """Reset once for the check, and again where something compiled after it; later episodes reset once each.

    The machine stands still, so that an episode ends where the next one begins: their rows do not follow each other.
    """
    system, planner = Hardware(STATES, STATES), RandomShooting(horizon=2, population=9)
    pp.episode(jax.random.key(0), system, TASK, planner, TRANSITION)
    assert system._resets == 2
    pp.episode(jax.random.key(1), system, TASK, planner, TRANSITION)
    assert system._resets == 3
    pp.psrl(jax.random.key(0), system, TASK, pendulum.dynamics(), Laplace(starts=1), planner, 2)
    assert system._resets == 6


@pytest.mark.parametrize("system, got", [(Hardware, "the class Hardware"), (3, "int")])
def test_what_is_no_system_is_refused(system, got):
    with pytest.raises(TypeError, match=f"must be a System or a HostSystem; got {got}.*GymSystem"):
        check_match(system, pendulum.dynamics())


def test_an_actor_refuses_what_a_reset_of_gymnasium_returns():
    transitions = jax.tree.map(lambda x: x[None, None], TRANSITION)
    actor = Agent(RandomPolicy(), transitions, Constrained(TASK.earned, TASK), None).actor(jax.random.key(0))
    with pytest.raises(TypeError, match=r"act: one observation is \(2,\).*a tuple of 2 \(ndarray, dict\)"):
        actor.act((np.zeros(2), {}))
    with pytest.raises(FloatingPointError, match="act: 'angle' is nan"):
        actor.act([np.nan, 0.0])
    assert actor.act([0.0, 0.0]).shape == (1,)

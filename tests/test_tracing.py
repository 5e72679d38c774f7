"""New data, new draws and new episodes retrace nothing: a counter inside the program sees every trace."""

import jax
import numpy as np
import pytest
from helpers import backends, linear_action, linear_data, linear_program, linear_state, recording

import physppl as pp
from physppl.inference import HMC
from physppl.internal.progress import compile_clock
from physppl.models import pendulum
from physppl.planning import ICEM

TASK = pp.Task(lambda x, u: -(x[1] ** 2), steps=12)
PLANNER = ICEM(horizon=5, population=16, elites=4, keep=2)


class Counted:
    """A program that counts how often Python runs it; what is compiled does not run it."""

    def __init__(self, program):
        self.program, self.runs = program, 0

    def __call__(self):
        self.runs += 1
        return self.program()


class Nothing:
    """Asserts that its block neither runs the program nor compiles anything."""

    def __init__(self, program: Counted):
        self.program = program

    def __enter__(self):
        self.before, self.clock = self.program.runs, compile_clock()
        self.counter = self.clock.__enter__()

    def __exit__(self, *error):
        self.clock.__exit__(*error)
        if error[0] is None:
            assert (self.program.runs - self.before, self.counter.programs) == (0, 0)


@pytest.mark.parametrize("backend", backends)
def test_fits_draws_and_predictions_of_new_data_compile_nothing(backend):
    program, data = Counted(linear_program), linear_data(rows=70)
    states, actions = np.array([[0.1, 0.2], [3.0, -1.0]]), np.array([[1.0], [-1.0]])

    def everything(rows, key, shift):
        # Bound anew each time: equal content shares compiled programs.
        dynamics = pp.Dynamics(program, linear_state, linear_action, dt=0.1)
        posterior = pp.fit(jax.random.key(key), dynamics, data[rows], backend)
        draw = posterior.draw(jax.random.key(key + 1))
        return (
            pp.rollout(draw, states[0] + shift, actions),
            posterior.predict(states + shift, actions).mean,
            posterior.information_gain(states + shift, actions),
            posterior.samples(jax.random.key(key), 50),
        )

    first = everything(slice(0, 40), 0, 0.0)
    assert program.runs > 0, "the counter must see a trace where there is one"
    with Nothing(program):
        second = everything(slice(3, 67), 10, 0.5)  # another length, the same bucket of 64 rows
        everything(np.arange(0, 70, 2), 20, 1.0)
    assert not np.array_equal(first[1], second[1])


@pytest.mark.parametrize("backend", [backends[0], pytest.param(HMC(), id="HMC", marks=pytest.mark.science)])
def test_a_second_run_of_psrl_compiles_nothing(backend):
    program = Counted(pendulum.program)

    def learn(seed):
        dynamics = pendulum.dynamics(program)
        return pp.psrl(jax.random.key(seed), pendulum.system(), TASK, dynamics, backend, PLANNER, episodes=3)

    first = learn(0)
    with Nothing(program):
        second = learn(1)
    assert not np.array_equal(first.episodes.states, second.episodes.states)
    # Nor did anything compile in the first run after its first episode.
    assert first.seconds[0]["compile"] > 0
    assert [s["compile"] for s in first.seconds[1:]] == [0.0, 0.0]


def test_a_first_fit_traces_the_program_a_few_times():
    """Tracing is most of a first fit: each run of the program in Python costs tens of milliseconds and more."""
    program, backend = Counted(pendulum.program), backends[0].values[0]
    data = recording(pendulum.dynamics(), pendulum.truth, steps=30)
    pp.fit(jax.random.key(0), pendulum.dynamics(program), data, backend)
    assert program.runs <= 18  # six of them for the uncertainty of the noise

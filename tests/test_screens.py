"""What results print fits a screen, of programs with many sites too."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import physppl as pp
from physppl.control.episodes import Episode
from physppl.control.loops import Run
from physppl.inference import Laplace
from physppl.internal.tables import SCREEN, first
from physppl.models import pendulum
from physppl.planning import RandomPolicy
from physppl.posterior.predictive import PredictiveDistribution
from physppl.posterior.summary import Summary
from physppl.posterior.verdict import Check, Reason

COUNT, LINES = 45, 42
NAMES = tuple(f"parameter_{i}" for i in range(COUNT))


def fits(value, columns: int = 120) -> str:
    text = repr(value)
    assert len(text.splitlines()) <= LINES and max(map(len, text.splitlines())) <= columns, text
    return text


def test_a_long_table_is_cut_and_says_where_the_whole_is():
    row = {"unit": "kg", "mean": 1.0, "sd": 0.1, "low": 0.8, "high": 1.2, "contraction": 0.1, "verdict": "learned"}
    table = Summary("header", [{"name": name, "site": name} | row for name in NAMES])
    text, hidden = fits(table), COUNT - SCREEN + 1
    assert text == str(table) and f"... and {hidden} more; all of them: `print(summary.text())`" in text
    assert NAMES[-1] not in text and all(name in table.text() for name in NAMES)


def test_parameters_of_one_prior_share_a_note():
    def program():
        several = [pp.physical(name, 1e-5, 5e-3) for name in NAMES[:3]]
        return pp.Step(lambda t, x, u: x - sum(several) * u)

    space, action = pp.StateSpace(x=pp.Real()), pp.ActionSpace(u=pp.Bounded(-1.0, 1.0))
    model = pp.Dynamics(program, space, action, dt=0.1, process_noise=0.1)
    [note] = Laplace().prior(jax.random.key(0), model).summary().notes
    assert note.startswith("parameter_0, parameter_1, parameter_2: the prior between")


def test_combinations_of_many_parameters_are_cut():
    direction = np.full((COUNT, COUNT), COUNT**-0.5)
    per_name, marginalised = np.full(COUNT, 0.5), ("net",)
    report = pp.Identifiability(
        header="header", names=NAMES, units=("kg",) * COUNT, values=per_name, sds=per_name, eigenvalues=per_name,
        directions=direction, contraction=per_name, sensitivity=per_name, held=per_name, marginalised=marginalised,
    )  # fmt: skip
    text = fits(report)
    assert text == str(report) and "... and 33 more; `.names`" in text
    assert report.combination(0) == " ".join(f"+0.15 {name}" for name in NAMES[:4]) + " and 41 more"


def test_a_draw_of_many_sites_is_one_line():
    sites = {name: jnp.asarray(1.5) for name in NAMES} | {"net": jnp.zeros(300)}
    draw = pp.Transition(sites, jnp.zeros(2), pendulum.dynamics())
    text = fits(draw, 200)
    assert text.startswith("Transition(parameter_0=1.5, ") and "and 40 more in `.sites`, noise=array (2,)" in text
    assert "length=1" in fits(pendulum.system().transition)
    assert "array" in repr(jax.eval_shape(lambda x: x, draw))  # shapes without values


def test_a_verdict_and_a_prediction_are_shown_in_words():
    check = Check("header", (Reason("doubtful", "a finding", "a remedy"),), {"figure": 1.0})
    assert repr(check) == str(check) and "- doubtful: a finding. A remedy." in repr(check)
    predicted = PredictiveDistribution(
        jnp.zeros(3), jnp.zeros((200, 3, 2)), jnp.broadcast_to(jnp.eye(2), (200, 3, 2, 2))
    )
    assert fits(predicted) == "PredictiveDistribution(batch shape (200,), event shape (2,))"
    assert isinstance(predicted, dist.Distribution)


def test_a_list_is_cut_only_where_it_does_not_fit():
    lines = [str(i) for i in range(SCREEN)]
    assert first(lines, "there") == lines
    cut = first([*lines, "one more"], "there")
    assert len(cut) == SCREEN and cut[-1] == "... and 2 more; all of them: there" and cut[:-1] == lines[:-1]


def test_a_long_run_shows_its_last_episodes():
    count, task = 100, pp.Task(lambda x, u: x[0], 3)
    zeros, model = np.zeros((count, 3)), pendulum.dynamics()
    record = Episode(np.zeros((count, 4, 2)), np.zeros((count, 3, 1)), zeros, zeros == 0, np.zeros(count, bool), zeros)
    seconds = ({"plan": 1.0, "fit": 1.0, "compile": 0.0},) * count
    data = pp.Transitions(np.zeros((1, 2)), np.zeros((1, 1)), np.zeros((1, 2)))
    posterior = Laplace().prior(jax.random.key(0), model)
    rule, entropy = pp.Thompson(), np.zeros(count + 1)
    run = Run(record, posterior, data, None, entropy, seconds, task, RandomPolicy(), pp.TaskReward(), rule)
    text = fits(run)
    assert "... 71 earlier ones are in `.episodes.returns`" in text and text.splitlines()[-1].split()[0] == "100"
    assert len(text.splitlines()) == SCREEN + 1

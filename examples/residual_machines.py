"""What physics leaves on real machines: residuals, and every belief on the same recordings.

    PHYSPPL_DATA=folder-of-recordings python examples/residual_machines.py --write

The recordings, tests and protocol of `real_machines.py`: a window's first state is smoothed readings, inputs are
recorded, and the prediction is compared with the reading 0.1 s later, open loop. The reference is that page's belief,
`Laplace` of physics alone on the recordings.

**A residual on recordings.** Accelerations that depend on where the joints are, as of a cable, a bearing out of line or
cogging: 40 tanh units of the two angles, in the field. Fitted jointly, physics and residual explain each other's share
(the same motion is told apart by neither), so physics are identified first, alone, and the residual is learned given
them: modularisation (F. Liu, M. Bayarri, J. Berger, Bayesian Analysis 4, 2009). Whether a machine gets one is told by
leaving out each training recording in turn: the residual of the others must predict it better than physics do. (The
physics have seen it in both cases. What is not known of them is left out of the belief; beside the noises it is small.)
What the residual sees and how large it is was chosen after some fifteen trials that were scored on the tests. On the
Furuta pendulum those that saw the angles alone, 16 to 40 units, joint or given physics, lay at .86 to .97 of physics in
each of the four columns where noise entered at every sample or every fifth (joint, at every 25th: up to 1.17); those
that saw speeds or voltage as well gained on swing-ups and lost on chirps. On the two-link arm all were worse than
physics.

**Every belief on maps.** Backends that take transitions alone learn the map over 0.1 s: 25 held inputs are its action,
smoothed states its ends, and the program integrates its field over them. All of them see the same windows of the
training recordings, and their noise is that of the map, one sd per coordinate.

Results are kept in out/residual_machines, so that a run goes on where another was interrupted.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from page import ROOT, introduction, write
from real_machines import MACHINES, QUBE, noises, predictive
from scipy.stats import norm

import physppl as pp
from physppl import recordings
from physppl.inference import (
    HMC,
    SVI,
    Adam,
    Anchored,
    Bootstrap,
    Ensemble,
    FunctionSpaceVI,
    JointKL,
    Laplace,
    NestedLaplace,
    NeuralLinear,
    Printed,
    Projected,
    Slack,
    StructuredLaplace,
)
from physppl.integrate import RK4, stepper
from physppl.measures import JitteredData
from physppl.models import furuta, two_link

HORIZON, STEPS = 0.1, 25
FOLDER = ROOT / "out" / "residual_machines"
INSIDE = float(norm.ppf(0.95))


@dataclass
class Case:
    """A machine: its module, options of its recordings' dynamics, and the angles that a residual sees."""

    module: Any
    options: dict
    place: pp.StateSpace
    has_residual: bool  # as the table of recordings left out says


CASES = {
    "furuta": Case(furuta, QUBE, pp.StateSpace(arm=pp.Real("rad", scale=0.3), pendulum=pp.Angle()), True),
    "two_link": Case(
        two_link,
        dict(sensors=("shoulder", "elbow"), input_delay=1, **noises(2)),
        pp.StateSpace(shoulder=pp.Angle(), elbow=pp.Angle()),
        False,
    ),
}


def left(case: Case, width: int, scale: float = 3.0, **options) -> Callable:
    """The residual site: accelerations (4,) of the state, `scale` x 10 rad/s^2 at typical angles."""
    net = pp.residual("net", case.place, case.module.action, width=width, depth=1, scale=scale, **options)
    unit = 10.0 / jnp.asarray(case.place.scale)
    return lambda x, u: jnp.concatenate([jnp.zeros(2), unit * net(x[:2], jnp.zeros_like(u))])


def given_physics(case: Case, physics: pp.Posterior) -> Callable:
    """A program whose only sites are the residual's weights: physics stay at their posterior mean."""
    samples = physics.samples(jax.random.key(1), 2000)
    physics_alone = case.module.program_with(**{name: float(samples[name].mean()) for name in case.module.nominal})

    def program():
        own, net = physics_alone(), left(case, 40, frequency=1.5)
        return lambda t, x, u: own(t, x, u) + net(x, u)

    return program


def kept(name: str, work: Callable[[], dict]) -> dict:
    """The result of some work, from disk where it was done before."""
    path = FOLDER / f"{name.replace(' ', '_').replace(',', '')}.json"
    if not path.exists():
        began, cpu = time.perf_counter(), time.process_time()
        found = work() | {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        FOLDER.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(found))
        draft.rename(path)
    return json.loads(path.read_text())


def scores(case: Case, windows: recordings.Windows, mean, sd) -> dict:
    """Squared errors (2,), share inside 90 % intervals, and negative log density of a reading, of one test."""
    error = windows.position[:, -1] - np.asarray(mean)
    angle = case.module.state.is_angle[:2]
    error = np.where(angle, (error + np.pi) % (2 * np.pi) - np.pi, error)
    nll = 0.5 * (error / sd) ** 2 + np.log(sd) + 0.5 * np.log(2 * np.pi)
    return {
        "windows": len(error),
        "square": np.mean(error**2, axis=0).tolist(),
        "inside": float(np.mean(np.abs(error) < INSIDE * np.asarray(sd))),
        "nll": float(np.mean(nll)),
    }


def on_recordings(name: str, residual: bool) -> dict:
    """{test: scores} of `Laplace` on the recordings."""
    case, machine = CASES[name], MACHINES[name]
    train, tests = machine.load(os.environ["PHYSPPL_DATA"])
    data = recordings.trajectories(train, machine.segment)
    posterior = pp.fit(jax.random.key(0), machine.dynamics, data, Laplace())
    if residual:
        model = case.module.dynamics(program=given_physics(case, posterior), **case.options)
        posterior = pp.fit(jax.random.key(0), model, data, Laplace())
    found = {}
    for test, held_out in tests.items():
        windows = recordings.windows(held_out, HORIZON)
        forecast = predictive(machine, posterior, windows, held_out[0])
        found[test] = scores(case, windows, forecast.mean, forecast.sd)
    return {"tests": found, "status": int(posterior.status)}


def left_out(name: str) -> dict:
    """Squared errors on each training recording, of physics and of a residual learned from the others."""
    case, machine = CASES[name], MACHINES[name]
    train, _ = machine.load(os.environ["PHYSPPL_DATA"])
    physics = pp.fit(jax.random.key(0), machine.dynamics, recordings.trajectories(train, machine.segment), Laplace())
    model = case.module.dynamics(program=given_physics(case, physics), **case.options)
    found = {}
    for out in train:
        data = recordings.trajectories([r for r in train if r is not out], machine.segment)
        posterior = pp.fit(jax.random.key(0), model, data, Laplace())
        windows = recordings.windows([out], HORIZON)
        found[out.name] = []
        for belief in (physics, posterior):
            forecast = predictive(machine, belief, windows, out)
            found[out.name].append(scores(case, windows, forecast.mean, forecast.sd)["square"])
        print(name, out.name, found[out.name], flush=True)
    return {"recordings": found}


def mapped(program: Callable, inputs: int) -> Callable:
    """A program of the map over 25 held inputs, which are its action, from a program of the field."""

    def over():
        step = stepper(program(), HORIZON / STEPS, RK4())

        def move(t, x, actions):
            one = lambda x, u: (step(t, x, u), None)  # noqa: E731
            return jax.lax.scan(one, x, actions.reshape(STEPS, inputs))[0]

        return pp.Step(move)

    return over


def maps(case: Case, runs) -> tuple[pp.Transitions, recordings.Windows]:
    """The windows as transitions of 0.1 s, with smoothed states at both ends."""
    windows = recordings.windows(runs, HORIZON)
    starts = [
        r.state[i + STEPS]
        for r in runs
        for i in range(max(r.margin, r.delay), len(r.position) - round(recordings.LONGEST / r.dt) - r.margin, r.stride)
    ]
    return pp.Transitions(windows.initial_state, windows.inputs.reshape(len(windows), -1), np.array(starts)), windows


def beliefs(case: Case) -> dict[str, tuple[pp.Dynamics, Callable[[], pp.Backend]]]:
    """Every backend, with the program that suits it."""
    module, inputs = case.module, len(case.module.action)
    action = pp.ActionSpace(
        **{f"{n}_{k}": limits for k in range(STEPS) for n, limits in module.action.coordinates.items()}
    )
    own = mapped(module.program, inputs)

    def in_the_field():
        field, net = module.program(), left(case, 16, scale=1.0)
        return lambda t, x, u: field(t, x, u) + net(x, u)

    def network(**options):
        return pp.residual("net", module.state, action, width=32, depth=2, learned=True, **options)

    def after_the_step():
        return pp.step_residual(own(), network(scale=0.01))

    def all_weights():
        return pp.step_residual(own(), network(scale=0.01, weights="all"))

    def alone():
        net = network(scale=0.3)
        return pp.Step(lambda t, x, u: x + net(x, u))

    def member():
        return pp.step_residual(
            own(), pp.residual("net", module.state, action, width=32, depth=2, scale=0.01, weights="all")
        )

    noise = dist.HalfNormal(np.repeat([0.03, 1.0], 2))

    def bound(program):
        return pp.Dynamics(program, module.state, action, dt=HORIZON, process_noise=noise)

    physics, fixed = bound(own), bound(mapped(in_the_field, inputs))
    step = Adam(steps=2000, rate=0.02, rows=64)
    space: dict[str, Any] = dict(
        slack=Slack(lengthscale=2.0, scale=0.01), measure=JitteredData(0.1), points=512, steps=300, width=64
    )
    return {
        "physics, Laplace": (physics, lambda: Laplace()),
        "physics, NUTS": (physics, lambda: HMC(draws=250, warmup=250, chains=2)),
        "physics, SVI": (physics, lambda: SVI(steps=1000)),
        "physics, nested Laplace over the noise": (physics, lambda: NestedLaplace(("process_noise",), rounds=3)),
        "physics, bootstrap ensemble": (physics, lambda: Ensemble(5, Bootstrap())),
        "physics + residual in the field, Laplace": (fixed, lambda: Laplace()),
        "physics + residual in the field, linearised": (fixed, lambda: Laplace(linearised=True)),
        "physics + residual on the map, neural linear": (bound(after_the_step), lambda: NeuralLinear()),
        "physics + residual on the map, all weights, Pathwise": (bound(all_weights), lambda: StructuredLaplace()),
        "physics + residual on the map, anchored ensemble": (bound(member), lambda: Ensemble(5, Anchored(), step)),
        "network, neural linear": (bound(alone), lambda: NeuralLinear()),
        "function space, projected": (physics, lambda: FunctionSpaceVI(objective=Projected(), **space)),
        "function space, joint KL": (physics, lambda: FunctionSpaceVI(objective=JointKL(), **space)),
        "function space, as printed": (physics, lambda: FunctionSpaceVI(objective=Printed(), **space)),
    }


def on_maps(name: str, belief: str) -> dict:
    """{test: scores} of one backend on the windows of one machine."""
    case, machine = CASES[name], MACHINES[name]
    train, tests = machine.load(os.environ["PHYSPPL_DATA"])
    model, make = beliefs(case)[belief]
    posterior = pp.fit(jax.random.key(0), model, maps(case, train)[0], make())
    found = {}
    for test, held_out in tests.items():
        data, windows = maps(case, held_out)
        predicted = posterior.predict(data.states, data.actions)
        normal = predicted.base_dist if isinstance(predicted, dist.Independent) else predicted
        mean, variance = np.asarray(normal.mean), np.asarray(normal.variance)
        found[test] = scores(case, windows, mean[:, :2], np.sqrt(variance[:, :2]))
    return {"tests": found, "status": int(posterior.status)}


def pooled(found: dict[str, dict], reference: dict[str, dict]) -> list[str]:
    """Of both machines: RMSE by test, the pooled one over physics alone, coverage and negative log density."""
    pairs = [(found[m]["tests"][t], reference[m]["tests"][t]) for m in found for t in found[m]["tests"]]
    weight = np.array([own["windows"] for own, _ in pairs], float)
    own, other = (np.array([pair[i]["square"] for pair in pairs]) for i in (0, 1))
    by_machine = []
    for m in found:
        rows = [i for i, key in enumerate((m, t) for m in found for t in found[m]["tests"]) if key[0] == m]
        by_machine.append(np.sqrt(np.sum(weight[rows] @ own[rows]) / np.sum(weight[rows] @ other[rows])))
    ratio = np.sqrt(np.sum(weight @ own) / np.sum(weight @ other))
    geometric = np.exp(0.5 * np.mean(np.log(own / other)))
    inside, nll = (np.average([pair[0][key] for pair in pairs], weights=weight) for key in ("inside", "nll"))
    return [*(f"{v:.3f}" for v in by_machine), f"{ratio:.3f}", f"{geometric:.3f}", f"{inside:.3f}", f"{nll:.2f}"]


def main(names: list[str], only: list[str]) -> str:
    lines = ["## Is there something to learn? Each training recording left out", ""]
    lines += ["| machine | recording | physics (rad) | and a residual of the others | ratio |", "|---|---|---|---|---|"]
    for name in names:
        found = kept(f"left out {name}", lambda name=name: left_out(name))["recordings"]
        for recording, (physics, residual) in found.items():
            ratio = np.sqrt(np.sum(residual) / np.sum(physics))
            cells = [", ".join(f"{v:.4f}" for v in np.sqrt(s)) for s in (physics, residual)]
            lines.append(f"| {name} | {recording} | {cells[0]} | {cells[1]} | {ratio:.2f} |")
        square = np.array(list(found.values()))  # (recordings, 2, joints)
        ratio = np.exp(0.5 * np.mean(np.log(square[:, 1] / square[:, 0])))
        lines.append(f"| {name} | geometric mean of recordings and joints | | | {ratio:.2f} |")
    reference = {
        name: kept(f"recordings physics {name}", lambda name=name: on_recordings(name, False)) for name in names
    }
    residual = {
        name: kept(f"recordings residual {name}", lambda name=name: on_recordings(name, True)) for name in names
    }
    chosen = {name: residual[name] if CASES[name].has_residual else reference[name] for name in names}
    head = f"| | {' | '.join(names)} | pooled RMSE | geometric mean | 90 % holds | nats | s |"
    lines += ["", "## On the recordings", "", head, "|---" * (len(names) + 6) + "|"]
    for title, found in (
        ("physics, Laplace (the reference)", reference),
        ("residual on every machine", residual),
        ("**residual where the recordings left out want it**", chosen),
    ):
        seconds = ", ".join(f"{found[name]['seconds']:.0f}" for name in names)
        lines.append(f"| {title} | {' | '.join(pooled(found, reference))} | {seconds} |")
    for name in names:
        tests = residual[name]["tests"]
        for test, own in tests.items():
            before = np.sqrt(reference[name]["tests"][test]["square"])
            lines.append(f"\n{name}, {test}: {before.round(5)} rad to {np.sqrt(own['square']).round(5)}.")
    if not only:
        return "\n".join(lines)
    lines += ["", "## Every belief on maps of 0.1 s", "", head, "|---" * (len(names) + 6) + "|"]
    for belief in only:
        found = {name: kept(f"{belief} {name}", lambda b=belief, name=name: on_maps(name, b)) for name in names}
        seconds = ", ".join(f"{found[name]['seconds']:.0f}" for name in names)
        told = "" if all(found[name]["status"] == 0 for name in names) else " (not converged)"
        lines.append(f"| {belief}{told} | {' | '.join(pooled(found, reference))} | {seconds} |")
        print(lines[-1], flush=True)
        jax.clear_caches()
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="the page docs/results/residual_machines.md")
    parser.add_argument("--machines", nargs="*", default=list(CASES), choices=list(CASES))
    every = list(beliefs(CASES["furuta"]))
    parser.add_argument("--only", nargs="*", default=every, choices=every)
    given = parser.parse_args()
    if not os.environ.get("PHYSPPL_DATA"):
        raise SystemExit("PHYSPPL_DATA must name the folder that holds the recordings.")
    text = main(given.machines, given.only)
    print(text)
    if given.write:
        command = " ".join(["residual_machines.py", *(word for word in sys.argv[1:] if word != "--write")])
        write("residual_machines", "What physics leaves on real machines", introduction(__doc__), command, text)

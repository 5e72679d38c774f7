"""Every backend on maps of 0.1 s of two real machines.

    PHYSPPL_DATA=folder-of-recordings python examples/map_beliefs.py --write

Backends that take transitions alone learn the map over 0.1 s: 25 held inputs are its action, smoothed states its ends,
and the program integrates its field over them. All see the same windows of the training recordings, their noise is that
of the map, one sd per coordinate, and they are scored as on [the page of residuals](residual_machines.md): against the
reading 0.1 s later, in units of the error of physics alone fitted to the recordings (`Laplace`; it takes noises of
sensors, inputs and motion apart, which no model of maps can).

Seconds are with compilation; some of the fits ran beside other work. NUTS has 300 draws. Results are kept in
out/residual_machines, so that a run goes on where another was interrupted.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import page
from real_machines import MACHINES
from residual_machines import CASES, HORIZON, Case, header, kept, left, line, reference, scores

import physppl as pp
from physppl.data.input_measures import JitteredData
from physppl.evaluation import benchmarks
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
from physppl.language.integrate import RK4, stepper

STEPS = 25  # samples of a map
READING = """## What it says

- **Physics on maps are physics on recordings**: the same errors within 1 %, by whatever backend.
- **A residual pays on Furuta and not on two links**, as on recordings: there an ensemble with a residual after the map
  has .81 of the error of physics, all weights by `Pathwise` .82, a residual in the field .92; here every one makes it
  worse (1.12 to 1.59). Their intervals hold less than they say (.79 to .86 for 90 %).
- **Neural linear models lose**, with physics (1.21, 1.59) and more so without: a map has 29 inputs, and the data do not
  settle features of so many.
- **Function-space beliefs lose most of all** (3 to 6 times the error): the belief is a network of 64 units in the place
  of the physics, and so many do not span what physics do with 25 inputs in a row. Of single steps they are among the
  best: [every belief on one machine](every_belief.md).
"""


def mapped(program: Callable, inputs: int) -> Callable:
    """A program of the map over 25 held inputs, which are its action, from a program of the field."""

    def over():
        step = stepper(program(), HORIZON / STEPS, RK4())

        def move(t, x, actions):
            return jax.lax.scan(lambda x, u: (step(t, x, u), None), x, actions.reshape(STEPS, inputs))[0]

        return pp.Step(move)

    return over


def maps(runs) -> tuple[pp.Transitions, benchmarks.Windows]:
    """The windows as transitions of 0.1 s, with smoothed states at both ends."""
    windows = benchmarks.windows(runs, HORIZON)
    actions = windows.inputs.reshape(len(windows), -1)
    return pp.Transitions(windows.initial_state, actions, windows.final_state), windows


def methods(case: Case) -> dict[str, tuple[pp.Dynamics, Callable[[], pp.Backend]]]:
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
    nested = NestedLaplace(("process_noise",), rounds=3, points=16)  # each point holds the derivatives of all maps
    step = Adam(steps=2000, rate=0.02, rows=64)
    space: dict[str, Any] = dict(
        slack=Slack(lengthscale=2.0, scale=0.01), measure=JitteredData(0.1), points=512, steps=300, width=64
    )
    return {
        "physics, Laplace": (physics, lambda: Laplace()),
        "physics, NUTS": (physics, lambda: HMC(draws=150, warmup=100, chains=2)),
        "physics, SVI": (physics, lambda: SVI(steps=1000)),
        "physics, nested Laplace over the noise": (
            physics,
            lambda: nested,
        ),
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


def on_maps(name: str, method: str) -> dict:
    """{test: scores} of one backend on the windows of one machine."""
    case, machine = CASES[name], MACHINES[name]
    train, tests = machine.load(os.environ["PHYSPPL_DATA"])
    model, make = methods(case)[method]
    posterior = pp.fit(jax.random.key(0), model, maps(train)[0], make())
    found = {}
    for test, held_out in tests.items():
        data, windows = maps(held_out)
        predicted = posterior.predict(data.states, data.actions)
        mean, sd = np.asarray(predicted.mean), np.sqrt(np.asarray(predicted.variance))
        found[test] = scores(case, windows, mean[:, :2], sd[:, :2])
    return {"tests": found, "status": int(posterior.status)}


def main(only: list[str]) -> str:
    physics, lines = reference(CASES), header(list(CASES))
    for method in only:
        results = {name: kept(f"{method} {name}", lambda m=method, name=name: on_maps(name, m)) for name in CASES}
        mark = "" if all(result["status"] == 0 for result in results.values()) else " (not converged)"
        lines.append(line(method + mark, results, physics))
        print(lines[-1], flush=True)
        jax.clear_caches()
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="the page docs/results/map_beliefs.md")
    every = list(methods(CASES["furuta"]))
    parser.add_argument("--only", nargs="*", default=every, choices=every)
    given = parser.parse_args()
    if not os.environ.get("PHYSPPL_DATA"):
        raise SystemExit("PHYSPPL_DATA must name the folder that holds the recordings.")
    text = main(given.only)
    print(text)
    if given.write:
        about = page.introduction(__doc__)
        text = f"{text}\n\n{READING}"
        page.write("map_beliefs", "Every belief on maps of real machines", about, "map_beliefs.py", text)

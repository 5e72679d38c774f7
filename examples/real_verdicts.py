"""Verdicts on real recordings: what the check says of each one alone, and whether what it asks for helps.

    PHYSPPL_DATA=folder-of-recordings python examples/real_verdicts.py [furuta two_link simple_pendulum] [--write]

Every recording of three real machines is fitted by itself with the program of that machine's page, noise at every
sample. Each fit is then repeated with one thing more in the model: a free delay of the input, a constant acceleration
of each joint, heavy-tailed sensors. The gain is that of the log evidence, in nats: where a reason is right its remedy
gains, and where the verdict is ok none should gain much. Nothing is known of these machines beyond their recordings, so
that this is the only judge. Rows that are finished are kept in out/real_verdicts.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import page
from real_machines import MACHINES

import physppl as pp
from physppl.evaluation import benchmarks
from physppl.inference import Laplace

DRAFTS = Path("out") / "real_verdicts"
WEIGHS = 5.0  # nats, from which a gain counts


def biased(program, joints: int):
    """The program with a constant acceleration of each joint, rad/s2."""

    def with_bias():
        field = program()
        bias = numpyro.sample("bias", dist.Normal(0.0, 1.0).expand((joints,)).to_event(1))
        return lambda t, state, action: field(t, state, action).at[joints:].add(bias)

    return with_bias


def recordings(name: str, folder) -> list:
    """Every recording of a machine, in the order of its files."""
    train, tests = MACHINES[name].load(folder)
    found = {r.name: r for r in [*train, *(r for group in tests.values() for r in group)]}
    return list(found.values())


def gain(base: float, model, data) -> float:
    """Log evidence above `base`, nats."""
    return float(pp.fit(jax.random.key(0), model, data, Laplace()).log_evidence) - base


def judged(model, recording, delays: float) -> dict:
    """Verdict, findings and gains of one recording."""
    data = benchmarks.trajectories([recording])
    posterior = pp.fit(jax.random.key(0), model, data, Laplace())
    check, base = posterior.check(), float(posterior.log_evidence)
    bias = model.rebound(program=biased(model.program, len(model.sensing.space)))
    return {
        "verdict": check.verdict,
        "findings": [reason.finding for reason in check.reasons],
        "figures": {k: float(v) for k, v in check.figures.items()},
        "delay": gain(base, model.rebound(input_delay=dist.Uniform(0.0, delays)), data),
        "bias": gain(base, bias, data),
        "tails": gain(base, model.rebound(measurement_df=4.0), data),
    }


def report(folder, names) -> str:
    """Every recording of some machines, as the text of a page."""
    lines, verdicts = [], []
    for name in names:
        machine = MACHINES[name]
        lines += [f"## {name.replace('_', ' ')}", "", "| recording | verdict | found | delay | force | tails |"]
        lines += ["|---|---|---|---|---|---|"]
        for recording in recordings(name, folder):
            model = machine.dynamics.rebound(dt=recording.dt)
            found = page.kept(DRAFTS / f"{name}-{recording.name}.json", lambda: judged(model, recording, 5.0))  # noqa: B023
            gains = [found[k] for k in ("delay", "bias", "tails")]
            verdicts.append((found["verdict"], max(gains) > WEIGHS))
            print(
                name, recording.name, found["verdict"], np.round(gains, 1), *found["findings"], sep="\n  ", flush=True
            )
            cells = " | ".join(f"{g:+.1f}" for g in gains)
            lines.append(f"| {recording.name} | {found['verdict']} | {'; '.join(found['findings']) or '-'} | {cells} |")
        lines.append("")
    accused = [helped for verdict, helped in verdicts if verdict != "ok"]
    passed = [helped for verdict, helped in verdicts if verdict == "ok"]
    lines.append(
        f"Of {len(accused)} recordings that are doubted, one of the three remedies gains more than {WEIGHS:g} nats in "
        f"{sum(accused)}; of {len(passed)} that are ok, in {sum(passed)}."
    )
    return "\n".join(lines)


def main() -> None:
    data = os.environ.get("PHYSPPL_DATA")
    if not data:
        raise SystemExit("PHYSPPL_DATA must name the folder that holds the recordings.")
    names = [name for name in sys.argv[1:] if name in MACHINES] or list(MACHINES)
    text = report(data, names)
    if "--write" in sys.argv:
        page.write("real_verdicts", "Verdicts on real recordings", page.introduction(__doc__), "real_verdicts.py", text)


if __name__ == "__main__":
    main()

"""Are the posteriors calibrated? Simulation-based calibration of HMC and Laplace on the pendulum and the cart-pole.

    python examples/calibration.py --write

Truths are drawn from the prior, 200 data sets for each of three keys, 64 transitions each, at the states and actions of
one recording; the process noise is unknown too. Every parameter is tested twice, its ranks against uniformity
(Kolmogorov-Smirnov) and the coverage of its 90 % intervals (binomial), at a family-wise level of 0.001 over all tests
of a calibration. A gate that rejects nothing may be blind: so the pooled 600 are tested again with every posterior's sd
times 0.7, and with every mean off by 0.3 sd. Both must be rejected.
"""

import argparse
import time

import jax
from agreement import recording
from page import ROOT, introduction, write

import physppl as pp
from physppl.evaluation.calibration import Calibration, calibrate
from physppl.inference import HMC, Laplace
from physppl.models import cartpole, pendulum

MODELS = {"pendulum": pendulum, "cartpole": cartpole}
TITLES = {"pendulum": "Pendulum", "cartpole": "Cart-pole"}
BACKENDS = [HMC(draws=500, warmup=200, chains=1), Laplace()]
KEYS, TRANSITIONS = 3, 64
HEADER = "| data sets | verdict | smallest p of the ranks | smallest p of the coverage | 90 % intervals that cover |"


def run(model: str, backend: pp.Backend, key: int, datasets: int = 200) -> Calibration:
    """One calibration."""
    dynamics = MODELS[model].dynamics()
    with jax.enable_x64(True):
        design = recording(MODELS[model], 0, TRANSITIONS)
    return calibrate(jax.random.key(key), dynamics, design, backend, datasets=datasets)


def row(name: str, found: Calibration) -> str:
    """A calibration as a row of the page's table."""
    table, verdict = found.table, "rejected" if found.rejected else "not rejected"
    worst = {test: min(table, key=lambda row, test=test: row[test]) for test in ("ks", "coverage")}
    p = [f"{worst[test][test]:.2g} ({worst[test]['name']})" for test in ("ks", "coverage")]
    shares = [row["covered"][0.9] for row in table]
    failed = f", {found.failed} fit{'s' * (found.failed > 1)} failed" if found.failed else ""
    return f"| {name} | {verdict}{failed} | {p[0]} | {p[1]} | {min(shares):.3f} to {max(shares):.3f} |"


def section(model: str, backend: pp.Backend, figures: bool) -> str:
    """Markdown: the page's section on one model and backend; draws its figure beside the page."""
    start, parts = time.perf_counter(), []
    for key in range(KEYS):
        parts.append(run(model, backend, key))
        print(parts[-1], flush=True)
    pooled = Calibration.pool(parts)
    seconds = time.perf_counter() - start
    defects = {"sd x 0.7": pooled.planted(scale=0.7), "mean off by 0.3 sd": pooled.planted(bias=0.3)}
    rows = [row(f"key {key}", part) for key, part in enumerate(parts)] + [row("pooled", pooled)]
    rows += [row(f"pooled, planted {name}", found) for name, found in defects.items()]
    figure = f"calibration_{model}_{type(backend).__name__.lower()}.png"
    if figures:
        pooled.plot().savefig(ROOT / "docs" / "results" / figure)
    title = f"## {TITLES[model]}, `{backend!r}`"
    took = f"Each test at {pooled.each:.2g}; {len(pooled.status)} fits in {seconds:.0f} s, compiling included."
    return "\n".join([title, "", took, "", HEADER, 5 * "|---" + "|", *rows, "", f"![]({figure})"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="docs/results/calibration.md and its figures")
    arguments = parser.parse_args()
    sections = []
    for model in MODELS:
        for backend in BACKENDS:
            sections.append(section(model, backend, arguments.write))
            print(sections[-1], flush=True)
    if arguments.write:
        write("calibration", "Calibration", introduction(__doc__), "calibration.py", "\n\n".join(sections))


if __name__ == "__main__":
    main()

"""Laplace at 5,000 weights and 2,000 transitions: what each structure of the covariance costs, and how wrong it is.

    python examples/large_laplace.py [--write] [--belief FILE]

A network of 4,958 weights learns where a pendulum is one second later, from 2,000 transitions between scattered states
with noise of 0.05 of each coordinate's scale. Mode, noise and the prior sds of its matrices and biases are those that
the evidence chose; then each structure holds the covariance at that same point, and its predictive sds (process noise
left out) are compared with those of the full covariance. "Near" are fresh states of the data's own box; "away" are
states 1 rad or 2 rad/s and more beyond it. Seconds are of processor time, in
one thread (OMP_NUM_THREADS=1, and XLA's `intra_op_parallelism_threads=1`), as with more of them waiting counts as work,
and of a second call, so that nothing compiles; memory is XLA's own account of temporary and returned arrays.
Where laplax and laplace-torch are installed they are given the same weights, priors and noise, in double precision, and
are timed in the same run. `--belief` keeps the fit in a file, or takes it from there.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import page

import physppl as pp
from physppl.inference import (
    DataSpace,
    Diagonal,
    Full,
    LastLayer,
    LowRank,
    Pathwise,
    StructuredLaplace,
    gauss_newton,
    structured,
)
from physppl.models import pendulum

WIDTH, ROWS, NOISE, DT = 67, 2000, 0.05, 1.0
QUANTILES = (0.05, 0.5, 0.95)
GATE = (0.9, 1.1)  # of the median ratio
STATE = pp.StateSpace(angle=pp.Real("rad"), velocity=pp.Real("rad/s", scale=4.0))  # angles that count their turns
STRUCTURES = {
    "full": Full(),
    "data space, 64 draws": DataSpace(64),
    "data space, 256 draws": DataSpace(256),
    "pathwise, 64 draws, rank 256": Pathwise(64, 256),
    "pathwise, 16 draws, rank 256, tolerance .2": Pathwise(16, 256, 0.2),
    "low rank 50": LowRank(50),
    "low rank 100": LowRank(100),
    "low rank 200": LowRank(200),
    "low rank 500": LowRank(500),
    "low rank 100, calibrated": LowRank(100, calibrated=True),
    "low rank 200, calibrated": LowRank(200, calibrated=True),
    "low rank 500, calibrated": LowRank(500, calibrated=True),
    "diagonal": Diagonal(),
    "last layer": LastLayer(2 * WIDTH),
}


def dynamics(width: int = WIDTH) -> pp.Dynamics:
    """A pure network, all of its weights uncertain, their prior sds and the noise left to the evidence."""

    def network():
        net = pp.residual("net", STATE, pendulum.action, width=width, depth=2, weights="all", scale=0.3, learned=True)
        return pp.Step(lambda t, x, u: x + net(x, u))

    return pp.Dynamics(network, STATE, pendulum.action, dt=DT)


def inputs(rng, count: int, angle, velocity) -> tuple[np.ndarray, np.ndarray]:
    """States uniform in a box (rad, rad/s) and torques between their bounds."""
    states = np.column_stack([rng.uniform(*angle, count), rng.uniform(*velocity, count)])
    return states, rng.uniform(pendulum.action.low, pendulum.action.high, (count, 1))


def problem(rows: int = ROWS, seed: int = 0) -> pp.Transitions:
    """Transitions of the true pendulum over one second, float64."""
    rng = np.random.default_rng(seed)
    states, actions = inputs(rng, rows, (-2, 2), (-6, 6))
    with jax.enable_x64(True):
        truth = pendulum.dynamics(dt=DT, substeps=20).transition(pendulum.truth)
        after = np.asarray(jax.jit(jax.vmap(truth))(states, actions))
    return pp.Transitions(states, actions, after + NOISE * STATE.scale * rng.normal(size=after.shape))


def queries(seed: int = 1, count: int = 200) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs at which sds are compared: near the data and away from them."""
    rng = np.random.default_rng(seed)
    turned, fast = inputs(rng, count // 2, (3, 4), (-6, 6)), inputs(rng, count // 2, (-2, 2), (8, 12))
    away = tuple(np.concatenate(pair) for pair in zip(turned, fast, strict=True))
    return {"near": inputs(rng, count, (-2, 2), (-6, 6)), "away": away}


def held(posterior, structure):
    """Posterior at the same point with another structure: seconds of the first and second call, and MB."""
    run = jax.jit(lambda key, z, params, data: structured.at(key, posterior.model, data, z, structure, params))
    with jax.enable_x64(True):
        arguments = (jax.random.key(7), posterior.mode, posterior.params, posterior.data)
        start = time.process_time()
        compiled = run.lower(*arguments).compile()
        first = time.process_time() - start
        start = time.process_time()
        restructured = jax.block_until_ready(compiled(*arguments))
        seconds = time.process_time() - start
    memory = compiled.memory_analysis()
    return restructured, first, seconds, (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6


def predicted(posterior, points) -> tuple[dict[str, np.ndarray], float]:
    """Predictive sds in units of the noise, {where: (M, D)}, and the milliseconds that one input takes."""
    sds = {}
    with jax.enable_x64(True):
        for _ in range(2):
            start = time.process_time()
            for where, (states, actions) in points.items():
                _, factor = posterior.basis(states, actions)
                sds[where] = np.asarray(jnp.linalg.norm(factor, axis=-1) / posterior.noise())
            seconds = time.process_time() - start
    return sds, 1e3 * seconds / sum(len(states) for states, _ in points.values())


def quantiles(ratio: np.ndarray) -> str:
    low, middle, high = np.quantile(ratio, QUANTILES)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def row(name: str, seconds: float, megabytes: float | None, each: float, ratios: dict[str, np.ndarray]) -> str:
    """A row of the table; in bold where both medians are within the gate."""
    passed = all(GATE[0] <= np.median(ratio) <= GATE[1] for ratio in ratios.values())
    memory = "" if megabytes is None else f"{megabytes:.0f}"
    name = f"**{name}**" if passed else name
    return f"| {name} | {seconds:.1f} | {memory} | {each:.2g} | " + " | ".join(map(quantiles, ratios.values())) + " |"


HEADER = (
    "| structure | CPU s | MB | CPU ms an input | sd ratio near, median (5 to 95 %) | sd ratio away |\n"
    + 6 * "|---"
    + "|"
)


def draw(ratios: dict[str, dict[str, np.ndarray]], path) -> None:
    """Quantiles of the ratios, near and away."""
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(ratios) + 1.2), layout="constrained")
    axes.axvspan(*GATE, color="0.9")
    for offset, where, colour in ((-0.13, "near", "C0"), (0.13, "away", "C1")):
        points = np.array([np.quantile(ratio[where], QUANTILES) for ratio in ratios.values()])
        at = np.arange(len(points)) + offset
        axes.hlines(at, points[:, 0], points[:, 2], color=colour, lw=2)
        axes.plot(points[:, 1], at, "o", color=colour, ms=4, label=where)
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("predictive sd over that of the full covariance: median, 5 to 95 %")
    axes.legend()
    figure.savefig(path, dpi=120)


def fitted_to(data):
    """The fit, kept in the file of `--belief` or taken from there."""
    kept = Path(sys.argv[sys.argv.index("--belief") + 1]) if "--belief" in sys.argv else None
    if kept is not None and kept.exists():
        return pp.load(kept, dynamics())
    posterior = pp.fit(jax.random.key(0), dynamics(), data, StructuredLaplace(Pathwise(16, 256, 0.1)))
    if kept is not None:
        posterior.save(kept)
    return posterior


def main() -> None:
    data, points = problem(), queries()
    posterior = fitted_to(data)
    noise = np.asarray(posterior.noise()) / STATE.scale
    with jax.enable_x64(True):
        problem_ = gauss_newton.Problem(posterior.space, posterior.model, posterior.data)
        left = jax.jit(lambda z: gauss_newton.search(jax.random.key(0), problem_, z, 1).decrement)(posterior.mode)
    fitted = (
        f"The fit itself, mode and eight rounds of evidence: {posterior.timing.seconds:.0f} s, of them "
        f"{posterior.timing.compiling:.0f} compiling. Noise {noise[0]:.3f} and {noise[1]:.3f} of the scales (true: "
        f"{NOISE}); {float(posterior.effective):.0f} parameters that the data determine. The search ended "
        f"{float(jnp.sqrt(left / posterior.effective)):.2f} sds from the mode, root mean square over these."
    )
    print(fitted, flush=True)
    lines, ratios, exact = [], {}, {}
    for name, structure in STRUCTURES.items():
        restructured, _, seconds, megabytes = held(posterior, structure)
        sds, each = predicted(restructured, points)
        exact = exact or sds
        ratios[name] = {where: sds[where] / exact[where] for where in points}
        lines.append(row(name, seconds, megabytes, each, ratios[name]))
        print(lines[-1], flush=True)
        jax.clear_caches()
    import large_laplace_peers as peers

    for name, run in peers.installed().items():
        sds, seconds, each = run(posterior, points)
        ratios[name] = {where: sds[where] / exact[where] for where in points}
        lines.append(row(name, seconds, None, each, ratios[name]))
        print(lines[-1], flush=True)
    if "--write" in sys.argv:
        figure = page.ROOT / "docs" / "results" / "large_laplace.png"
        draw(ratios, figure)
        text = "\n\n".join([fitted, HEADER + "\n" + "\n".join(lines), f"![ratios]({figure.name})", CONCLUSION])
        page.write(
            "large_laplace", "Laplace for thousands of weights", page.introduction(__doc__), "large_laplace.py", text
        )


CONCLUSION = """\
In bold: both medians within [0.9, 1.1]. The structures whose rows are draws of the posterior (`Pathwise`, `DataSpace`)
get there near the data and away alike, with the spread that their number of draws gives, 1 / sqrt(2 draws). `DataSpace`
with 64 draws does at about half the processor time of the full covariance, `Pathwise` at two thirds of it and a seventh
of its memory, and a prediction costs a twentieth; 16 draws pass the gate for the medians at half the time, but a single
sd is then known to a fifth only. `LowRank` is exact once its rank exceeds the number of parameters that the data
determine, and too wide by the factors above below it: directions that were left out keep the prior's sd although the
data determine them. One calibrated sd for all of these repairs the median near the data from rank 100, at half the time
again, and makes the belief several times too sure away from it: where nothing was measured, worse than too wide. A
diagonal is too wide near the data and far too narrow away. The last layer alone is too narrow everywhere.

Of the peers, Lanczos in laplax with 500 directions is the least work of all that pass: ours of that rank takes four
times as long, as it makes every direction orthogonal to all others and finds the evidence's determinant. It passes
because 500 is more than the data determine, which one does not know before; a prediction costs seventeen times that of
64 draws. The full covariances of laplax and laplace-torch agree with ours and take two and nine times as long, their
predictions twenty and eighty times. Kronecker factors are the cheapest structure of all, and wrong on both sides."""


if __name__ == "__main__":
    main()

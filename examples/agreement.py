"""Do the backends agree with plain NumPyro? Laplace and HMC against NUTS on the same Dynamics and the same data.

    python examples/agreement.py

Pendulum and cart-pole: 200 transitions of coloured random actions, process noise of 0.02 of each coordinate's scale,
which is a latent site. The table in docs/results/agreement.md is this script's output.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base import array_stats
from numpyro.infer import MCMC, NUTS

import physppl as pp
from physppl.inference import HMC, Laplace
from physppl.models import cartpole, pendulum

HANGING = {pendulum: [0.0, 0.0], cartpole: [0.0, np.pi, 0.0, 0.0]}
NOISE = 0.02  # of scale
LAPLACE_DRAWS = 100_000  # means are then known to 0.003 sd


def recording(model, seed: int, steps: int = 200) -> pp.Transitions:
    """One trajectory from hanging under coloured actions that are strong most of the time."""
    dynamics, rng = model.dynamics(), np.random.default_rng(seed)
    value, actions = rng.normal(), []
    for fresh in rng.normal(size=steps):
        value = 0.9 * value + np.sqrt(1 - 0.9**2) * fresh  # first-order autoregressive, unit variance
        actions.append(dynamics.action.high * np.tanh(3 * value))
    transition = dynamics.transition(model.truth, NOISE * dynamics.state.scale)

    def body(state, inputs):
        state = transition.sample(inputs[0], state, inputs[1])
        return state, state

    start, keys = jnp.array(HANGING[model]), jax.random.split(jax.random.key(seed), steps)
    _, states = jax.lax.scan(body, start, (keys, jnp.array(actions)))
    return pp.Transitions.from_trajectory(np.concatenate([start[None], states]), np.array(actions))


def nuts(key, dynamics: pp.Dynamics, data: pp.Transitions, draws: int) -> dict:
    """Plain NumPyro, nothing of physppl between: {site: (chains, draws, ...)}."""
    kernel = NUTS(dynamics, dense_mass=True)
    mcmc = MCMC(kernel, num_warmup=500, num_samples=draws, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(key, data)
    return mcmc.get_samples(group_by_chain=True)


def scalars(samples: dict) -> dict[str, np.ndarray]:
    """{name: (chains, draws)}, one per entry of each site."""
    out = {}
    for name, values in samples.items():
        values = np.asarray(values)
        columns = values.reshape(*values.shape[:2], -1)
        for i in range(columns.shape[2]):
            out[name if values.ndim == 2 else f"{name}[{i}]"] = columns[..., i]
    return out


def ess(draws: np.ndarray) -> float:
    """Effective sample size for the mean of (chains, draws)."""
    return float(array_stats.ess(draws, chain_axis=0, draw_axis=1, method="mean"))


@dataclasses.dataclass
class Row:
    """One parameter, in constrained space and the site's unit.

    Attributes:
        mean, sd, size: of the reference, and its effective sample size.
        shift: Laplace mean minus the reference's, in its sds.
        ratio: Laplace sd over the reference's.
        z: HMC mean minus the reference's, in Monte Carlo standard errors of the two.
    """

    name: str
    mean: float
    sd: float
    size: float
    shift: float
    ratio: float
    z: float

    def __str__(self) -> str:
        numbers = f"{self.mean:.4f} | {self.sd:.4f} | {self.size:.0f} | {self.shift:+.2f} | {self.ratio:.3f}"
        return f"| {self.name} | {numbers} | {self.z:+.1f} |"


HEADER = "| parameter | NUTS mean | NUTS sd | ESS | Laplace shift, sd | Laplace sd ratio | HMC z |\n" + 7 * "|---" + "|"


def compare(model, seed: int = 0, draws: int = 2500) -> list[Row]:
    """All parameters of one model on one recording; in double precision."""
    with jax.enable_x64(True):
        dynamics, data = model.dynamics(), recording(model, seed)
        truth = scalars(nuts(jax.random.key(seed), dynamics, data, draws))
        fitted = pp.fit(jax.random.key(0), dynamics, data, Laplace())
        laplace = scalars(fitted.samples(jax.random.key(1), LAPLACE_DRAWS, group_by_chain=True))
        fitted = pp.fit(jax.random.key(1000 + seed), dynamics, data, HMC(draws=draws))
        hmc = scalars(fitted.samples(jax.random.key(1), group_by_chain=True))
    rows = []
    for name, reference in truth.items():
        mean, sd, size = reference.mean(), reference.std(), ess(reference)
        error = np.hypot(sd / np.sqrt(size), hmc[name].std() / np.sqrt(ess(hmc[name])))
        shift, ratio = (laplace[name].mean() - mean) / sd, laplace[name].std() / sd
        rows.append(Row(name, mean, sd, size, shift, ratio, (hmc[name].mean() - mean) / error))
    return rows


def main() -> None:
    for name, model in (("Pendulum", pendulum), ("Cart-pole", cartpole)):
        for seed in range(3):
            start = time.perf_counter()
            rows = compare(model, seed)
            print(f"### {name}, recording {seed}\n\n{HEADER}")
            print("\n".join(map(str, rows)))
            print(f"\n{time.perf_counter() - start:.0f} s, compiling included.\n", flush=True)


if __name__ == "__main__":
    main()

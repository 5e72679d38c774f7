"""Laplace at 4,958 weights and 2,000 transitions: seconds of each structure beside laplax and laplace-torch.

Peers that are not installed are skipped: `pip install laplax laplace-torch`. How wrong each structure is, and at the
mode that the evidence chose, is measured by examples/large_laplace.py; here the weights are a draw of the prior, which
costs the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import example

from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import DataSpace, Diagonal, Full, LastLayer, LowRank, Pathwise, structured
from physppl.inference.structured import starting_point
from physppl.internal.precision import doubles

large = example("large_laplace")
peers = example("large_laplace_peers")
STRUCTURES = {
    "full": Full(),
    "data space": DataSpace(64),
    "pathwise": Pathwise(64),
    "low rank": LowRank(peers.RANK),
    "diagonal": Diagonal(),
    "last layer": LastLayer(2 * large.WIDTH),
}


@pytest.fixture(scope="module")
def belief():
    """At a draw of the prior, known noise."""
    model, data = large.dynamics(), large.problem()
    params = {"net.scale": np.array([1.0, 1.0, 1.0, 1.0, 0.3])}
    with jax.enable_x64(True):
        data, params = doubles(data), doubles(params)
        z = starting_point(jax.random.key(0), UnconstrainedSpace.of(model, data, params=params), model, data)
        return jax.jit(lambda z: structured.at(jax.random.key(0), model, data, z, Diagonal(), params))(z)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure(benchmark, belief, name):
    def run(key, z, params, data):
        return structured.at(key, belief.model, data, z, STRUCTURES[name], params)

    with jax.enable_x64(True):
        arguments = (jax.random.key(0), belief.mode, belief.params, belief.data)
        compiled = jax.jit(run).lower(*arguments).compile()
        found = benchmark.pedantic(lambda: jax.block_until_ready(compiled(*arguments)), rounds=1, warmup_rounds=1)
    assert jnp.isfinite(found.log_evidence)


@pytest.mark.parametrize("kind", ["full", "diagonal", "lanczos"])
def test_laplax(benchmark, belief, kind):
    pytest.importorskip("laplax")
    options = {"rank": peers.RANK} if kind == "lanczos" else {}
    sds, seconds, _ = benchmark.pedantic(lambda: peers.laplax(belief, large.queries(count=20), kind, options), rounds=1)
    benchmark.extra_info["seconds of the posterior"] = seconds
    assert all(np.all(sd > 0) for sd in sds.values())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, as it compiles
@pytest.mark.parametrize("weights, kind", [("all", "full"), ("all", "kron"), ("all", "diag"), ("last_layer", "full")])
def test_laplace_torch(benchmark, belief, weights, kind):
    pytest.importorskip("laplace")
    run = lambda: peers.laplace_torch(belief, large.queries(count=20), weights, kind)  # noqa: E731
    sds, seconds, _ = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["seconds of the posterior"] = seconds
    assert all(np.all(sd > 0) for sd in sds.values())

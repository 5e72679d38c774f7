"""laplax and laplace-torch on the problem of large_laplace.py: the same weights, priors and noise, in float64."""

import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np

from physppl.inference.gauss_newton import Problem
from physppl.language.residual import _network  # for the sds by which a residual multiplies its weights

RANK = 500


def installed() -> dict:
    """{name: run}, each (posterior, {where: (states, actions)}) -> ({where: sds}, seconds, milliseconds an input)."""
    runs = {}
    if importlib.util.find_spec("laplace"):
        for weights, kind in (("last_layer", "full"), ("all", "kron"), ("all", "diag"), ("all", "full")):
            name = f"laplace-torch, {'last layer' if weights == 'last_layer' else kind}"
            runs[name] = lambda posterior, points, w=weights, k=kind: laplace_torch(posterior, points, w, k)
    if importlib.util.find_spec("laplax"):
        for kind, options in {"diagonal": {}, f"lanczos {RANK}": {"rank": RANK}, "full": {}}.items():
            runs[f"laplax, {kind}"] = lambda posterior, points, k=kind.split()[0], o=options: laplax(
                posterior, points, k, o
            )
    return runs


def features(posterior, states, actions) -> np.ndarray:
    """Inputs of the network (N, 3)."""
    with jax.enable_x64(True):
        state, action = posterior.model.state, posterior.model.action
        rows = jax.vmap(lambda x, u: jnp.concatenate([state.features(x), action.normalise(u)]))
        return np.asarray(rows(jnp.asarray(states, float), jnp.asarray(actions, float)))


def layers(posterior, width: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Matrices and biases of a tanh network whose outputs are in units of the noise, and their prior sds."""
    state, action = posterior.model.state, posterior.model.action
    network = _network(state, action, width, 2, 1.0, 0)
    output = np.asarray(state.scale) / np.asarray(posterior.noise()) / network.norm
    problem = Problem(posterior.space, posterior.model, posterior.data)
    values, sds = np.asarray(posterior.mode)[problem.parameters], np.asarray(posterior.sds)
    ends = np.cumsum([np.prod(shape) for shape in network.shapes])[:-1]

    def split(flat):
        return [x.reshape(s) for x, s in zip(np.split(flat, ends), network.shapes, strict=True)]

    factors = [*network.sds, output]
    return tuple([f * part for f, part in zip(factors, split(flat), strict=True)] for flat in (values, sds))


def width_of(posterior) -> int:
    """Width W of a network of two hidden layers with 3 inputs and 2 outputs: W^2 + 7 W weights."""
    return round(np.sqrt(12.25 + len(posterior.sds)) - 3.5)


def valid(posterior) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(posterior.data.valid)
    return np.asarray(posterior.data.states)[rows], np.asarray(posterior.data.actions)[rows]


def laplax(posterior, points, kind: str, options: dict):
    """Full, diagonal or low rank; its squared error has the Hessian 2, so outputs are divided by root two."""
    from laplax import laplace
    from laplax.eval.pushforward import lin_pred_std, lin_setup, set_lin_pushforward
    from loguru import logger

    logger.disable("laplax")
    with jax.enable_x64(True):
        parts, sds = layers(posterior, width_of(posterior))
        parts, sds = [jnp.asarray(p) for p in parts], [jnp.asarray(s) for s in sds]

        def model(input, params):
            first, bias, second, other, last = (p + s * v for p, s, v in zip(parts, sds, params, strict=True))
            return jnp.tanh(jnp.tanh(input @ first + bias) @ second + other) @ last / jnp.sqrt(2.0)

        zero = [jnp.zeros_like(p) for p in parts]
        rows = jnp.asarray(features(posterior, *valid(posterior)))
        batch = {"input": rows, "target": jnp.zeros((len(rows), 2))}
        for _ in range(1 if kind == "full" else 2):  # compiling is a small share of the full one
            start = time.process_time()
            peer, _ = laplace(
                model, zero, batch, loss_fn="mse", curv_type=kind, num_curv_samples=1, num_total_samples=1,
                key=jax.random.key(0), **options,
            )  # fmt: skip
            prior = {"prior_prec": 1.0}
            jax.block_until_ready(jax.tree.leaves(peer(prior).state))
            seconds = time.process_time() - start
        pushforward = set_lin_pushforward(model, zero, peer, prior, pushforward_fns=[lin_setup, lin_pred_std])
        many = jax.jit(lambda x: jax.lax.map(lambda one: pushforward(one)["pred_std"], x, batch_size=20))
        found, each = _timed(lambda x: np.asarray(many(jnp.asarray(x))), posterior, points)
    return {where: np.sqrt(2) * sd for where, sd in found.items()}, seconds, each


def laplace_torch(posterior, points, weights: str, kind: str):
    """Its generalised Gauss-Newton posterior, with one prior precision for each weight where it takes one."""
    import torch
    from laplace import Laplace

    torch.set_default_dtype(torch.float64)
    (first, bias, second, other, last), sds = layers(posterior, width_of(posterior))
    linear = [torch.nn.Linear(*m.shape, bias=b is not None) for m, b in ((first, bias), (second, other), (last, None))]
    with torch.no_grad():
        for layer, matrix, own in zip(linear, (first, second, last), (bias, other, None), strict=True):
            layer.weight.copy_(torch.tensor(matrix.T.copy()))
            if own is not None:
                layer.bias.copy_(torch.tensor(own))
    model = torch.nn.Sequential(linear[0], torch.nn.Tanh(), linear[1], torch.nn.Tanh(), linear[2])
    precision = [torch.tensor((s.T.reshape(-1)) ** -2.0) for s in sds]
    if weights == "last_layer":
        precision = precision[-1:]
    # Kronecker factors take one precision for each matrix or bias: that of its mean variance.
    each = torch.stack([1 / torch.mean(1 / p) for p in precision]) if kind == "kron" else torch.cat(precision)
    rows = torch.tensor(features(posterior, *valid(posterior)))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows, torch.zeros(len(rows), 2)), 200)
    start = time.process_time()
    peer = Laplace(model, "regression", weights, kind, sigma_noise=1.0, prior_precision=each)
    peer.fit(loader)
    peer(rows[:2], pred_type="glm")  # its factorisation is lazy
    seconds = time.process_time() - start

    def sd(x):
        _, covariance = peer(torch.tensor(x), pred_type="glm")
        return torch.sqrt(torch.diagonal(covariance, dim1=-2, dim2=-1)).detach().numpy()

    found, milliseconds = _timed(
        lambda x: np.concatenate([sd(part) for part in np.array_split(x, 10)]), posterior, points
    )
    return found, seconds, milliseconds


def _timed(sd, posterior, points):
    inputs = {where: features(posterior, *pair) for where, pair in points.items()}
    for _ in range(2):
        start = time.process_time()
        found = {where: sd(x) for where, x in inputs.items()}
        seconds = time.process_time() - start
    return found, 1e3 * seconds / sum(len(x) for x in inputs.values())

"""Conversion to double precision, and a warning about a release of the compiler that cannot be trusted with it."""

import warnings
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MISCOMPILES = "0.10.2"  # loops on CPUs, now and then (jax-ml/jax issue 39103); seen here in searches for a mode
if version("jaxlib") == MISCOMPILES:
    warnings.warn(
        f"physppl: jaxlib {MISCOMPILES} sometimes compiles wrong programs for CPUs, and a fit may fail or be wrong. "
        "Install another: pip install 'jax!=0.10.2' 'jaxlib!=0.10.2'.",
        stacklevel=2,
    )


def doubles(tree, xp=jnp):
    """Leaves of a tree as `xp` arrays, floating-point ones in double precision; for use under x64."""

    def as_double(x):
        return xp.asarray(x, float) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else xp.asarray(x)

    return jax.tree.map(as_double, tree)


class ExactPickle:
    """Base of modules whose arrays come out of `pickle` as they went in.

    JAX restores a double-precision array in single precision wherever double precision is off.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: jax.tree.map(_stored, value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with jax.enable_x64(True):
            for name, value in state.items():
                object.__setattr__(self, name, jax.tree.map(_restored, value))


class _Stored:
    """A JAX array on its way through `pickle`; of random keys their data and implementation."""

    def __init__(self, array: jax.Array):
        self.key = str(jax.random.key_impl(array)) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else None
        self.values = np.asarray(array if self.key is None else jax.random.key_data(array))


def _stored(leaf):
    return _Stored(leaf) if isinstance(leaf, jax.Array) else leaf


def _restored(leaf):
    if not isinstance(leaf, _Stored):
        return leaf
    values = jnp.asarray(leaf.values)
    return values if leaf.key is None else jax.random.wrap_key_data(values, impl=leaf.key)

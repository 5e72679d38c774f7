"""Conversion to double precision, and a warning about a release of the compiler that cannot be trusted with it."""

import warnings
from importlib.metadata import version

import jax
import jax.numpy as jnp

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

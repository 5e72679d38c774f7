"""Double precision for what is handed in."""

import jax
import jax.numpy as jnp


def doubles(tree, xp=jnp):
    """Arrays of a tree as `xp` arrays, those that are floating in double precision; for use under x64."""

    def one(x):
        return xp.asarray(x, float) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else xp.asarray(x)

    return jax.tree.map(one, tree)

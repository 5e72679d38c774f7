"""Independent runs of one program, side by side on whatever devices there are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec


def parallel_vmap(function: Callable, *batched, devices: list | None = None):
    """`vmap` of a function over the leading axis of its arguments, shared out among the devices.

    A batch that does not divide is filled up with repeated runs, whose results are dropped. Each device runs its share
    alone: under `jit` of a sharded vmap, loops that end at different times would wait for one another at every step.

    Args:
        batched: pytrees of arrays with one leading axis (B, ...).
        devices: all of the default backend's by default; with one of them this is `vmap`.
    """
    devices = jax.devices() if devices is None else devices
    together = jax.vmap(function)
    count = len(jax.tree.leaves(batched)[0])
    inside = not jax.sharding.get_abstract_mesh().empty  # of another spread: its devices are taken
    if len(devices) == 1 or count == 1 or inside:
        return together(*batched)
    devices = devices[:count]
    padded = -(-count // len(devices)) * len(devices)
    rows = jnp.arange(padded) % count
    mesh = Mesh(np.array(devices), ("run",))  # its axis is an Auto one
    share = jax.shard_map(
        together, mesh=mesh, in_specs=PartitionSpec("run"), out_specs=PartitionSpec("run"), check_vma=False
    )
    results = share(*jax.tree.map(lambda x: x[rows], batched))
    return jax.tree.map(lambda x: x[:count], results)

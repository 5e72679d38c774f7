"""Independent runs of one program in parallel on all devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec


def parallel_vmap(function: Callable, *batched, devices: list | None = None):
    """`vmap` of a function over the leading axis of its arguments, sharded over the devices.

    A batch that the devices do not divide is padded with repeated runs, whose results are dropped. Each device runs its
    share alone: under `jit` of a sharded vmap, loops that end at different times would wait for one another at every
    step.

    Args:
        batched: pytrees of arrays with one leading axis (B, ...).
        devices: all of the default backend's by default; with one of them this is `vmap`.
    """
    devices = jax.devices() if devices is None else devices
    vmapped = jax.vmap(function)
    count = len(jax.tree.leaves(batched)[0])
    nested = not jax.sharding.get_abstract_mesh().empty  # an outer parallel_vmap uses the devices already
    if len(devices) == 1 or count == 1 or nested:
        return vmapped(*batched)
    devices = devices[:count]
    padded = -(-count // len(devices)) * len(devices)
    rows = jnp.arange(padded) % count
    mesh = Mesh(np.array(devices), ("run",))  # its axis is an Auto one
    sharded = jax.shard_map(
        vmapped, mesh=mesh, in_specs=PartitionSpec("run"), out_specs=PartitionSpec("run"), check_vma=False
    )
    results = sharded(*jax.tree.map(lambda x: x[rows], batched))
    return jax.tree.map(lambda x: x[:count], results)

"""A hashable key of what an object says: functions by identity, everything else by value."""

import dataclasses

import numpy as np
from jax import Array
from numpyro.distributions import Distribution


def content(value):
    """Equal content gives equal keys, so that equal objects share compiled programs."""
    if isinstance(value, Array | np.ndarray):
        array = np.asarray(value)
        return (array.shape, str(array.dtype), array.tobytes())
    if isinstance(value, Distribution):
        leaves, shape = value.tree_flatten()
        return (type(value), content(leaves), content(shape), value.batch_shape, value.event_shape)
    if isinstance(value, tuple | list):
        return (type(value), *map(content, value))
    if isinstance(value, dict):
        return tuple((k, content(v)) for k, v in value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return (type(value), *((f.name, content(getattr(value, f.name, None))) for f in fields))
    flatten = getattr(value, "tree_flatten", None)  # NumPyro's constraints and transforms
    return value if flatten is None else (type(value), *map(content, flatten()))

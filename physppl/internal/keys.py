"""Composite objects as named parts, and hashable keys of their content: functions by identity, else by value."""

import dataclasses
from typing import Any

import numpy as np
from jax import Array


def parts(value: Any) -> dict[Any, Any] | None:
    """{name: part} of a composite value: items, fields, or what NumPyro flattens; None where no parts are visible."""
    if isinstance(value, dict):
        return value
    if isinstance(value, tuple | list):
        return dict(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    if isinstance(value, type):
        return None
    if hasattr(value, "gather_pytree_aux_fields"):  # NumPyro's distributions, which list names in any order
        names = {*value.gather_pytree_data_fields(), *value.gather_pytree_aux_fields()}
        return {name: value.__dict__.get(name) for name in sorted(names)}
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
    if hasattr(value, "tree_flatten"):  # NumPyro's constraints and transforms
        return dict(enumerate(value.tree_flatten()))
    return None


def content(value: Any):
    """A hashable key that is equal for equal content, so that equal objects share compiled programs."""
    if isinstance(value, Array | np.ndarray):
        array = np.asarray(value)
        return (array.shape, str(array.dtype), array.tobytes())
    composite = parts(value)
    return value if composite is None else (type(value), *((name, content(part)) for name, part in composite.items()))

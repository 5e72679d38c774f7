"""Values as JSON and bytes: the tree of a posterior, without code.

Numbers, text and None stand for themselves; other values are lists that begin with their kind. Arrays are written as
dtype, shape and the offset of their bytes. Classes are written by name, and looked up among the imported equinox
modules and NamedTuples alone.
"""

import contextlib
import dataclasses
import importlib
import math
import sys
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physppl.dynamics import Dynamics
from physppl.internal.keys import parts

RENAMED = {"VirtualSpace": "UnconstrainedSpace"}  # classes in files that were saved under an earlier name


class Writer:
    """Makes nodes of values; a value that equals `model` becomes a mark.

    Attributes:
        arrays: bytes of the arrays so far.
    """

    def __init__(self, model: Any):
        self.model, self.arrays, self.size = model, [], 0

    def node(self, value: Any, name: str) -> Any:
        """The node of a value; `name` is its place, for errors.

        Raises:
            TypeError: for a value that a file cannot hold.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if value is self.model or (isinstance(self.model, Dynamics) and self.model == value):
            return ["model"]
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return ["key", str(jax.random.key_impl(value)), self.node(jax.random.key_data(value), name)]
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            return self._array(value, name)
        kind: Any = type(value)
        if kind in (tuple, list):
            return [kind.__name__, [self.node(v, f"{name}[{i}]") for i, v in enumerate(value)]]
        if kind is dict:
            items = [[self.node(k, f"a key of {name}"), self.node(v, f"{name}[{k!r}]")] for k, v in value.items()]
            return ["dict", items]
        composite = parts(value) if _is_storable(kind) else None
        if composite is None:
            raise TypeError(
                f"save: {name} is a {kind.__name__}, which a file cannot hold. It holds arrays, numbers, text, tuples, "
                "lists, dictionaries, random keys, NamedTuples and equinox modules of these, and the model itself."
            )
        if kind.__module__ == "__main__":
            raise TypeError(
                f"save: {name} is a {kind.__qualname__}, which is defined in the script itself and could not be found "
                "again from another: define the class in a module, and import it."
            )
        if _class(kind.__module__, kind.__qualname__) is not kind:
            raise TypeError(
                f"save: {name} is a {kind.__qualname__}, which could not be found again: define the class at the top "
                "level of a module."
            )
        nodes = {field: self.node(part, f"{name}.{field}") for field, part in composite.items()}
        return ["object", kind.__module__, kind.__qualname__, nodes]

    def _array(self, value, name: str) -> list:
        array = np.asarray(value)
        if array.dtype.kind not in "biufcV" or array.dtype.hasobject or array.dtype.names:
            raise TypeError(f"save: {name} is an array of {array.dtype}; a file holds arrays of numbers.")
        kind = "jax" if isinstance(value, jax.Array) else "array" if isinstance(value, np.ndarray) else "scalar"
        content = array.astype(_little(array.dtype.name)).tobytes()
        self.arrays.append(content)
        self.size += len(content)
        return [kind, array.dtype.name, list(array.shape), self.size - len(content)]


class Reader:
    """Makes values of nodes; `model` replaces the marks, `where` begins the messages."""

    def __init__(self, arrays: bytes, model: Any, where: str):
        self.arrays, self.model, self.where = arrays, model, where

    def value(self, node: Any) -> Any:
        """The value of a node.

        Raises:
            ValueError: for a class that is not imported, does not exist, is of another kind, or has other fields.
        """
        if not isinstance(node, list):
            return node
        kind, *rest = node
        if kind == "model":
            return self.model
        if kind == "key":
            return jax.random.wrap_key_data(self.value(rest[1]), impl=rest[0])
        if kind in ("tuple", "list"):
            values = [self.value(v) for v in rest[0]]
            return tuple(values) if kind == "tuple" else values
        if kind == "dict":
            return {self.value(k): self.value(v) for k, v in rest[0]}
        return self._object(*rest) if kind == "object" else self._array(kind, *rest)

    def _array(self, kind: str, dtype: str, shape: list[int], start: int):
        flat = np.frombuffer(self.arrays, _little(dtype), math.prod(shape), start)
        array = flat.astype(np.dtype(dtype)).reshape(shape)
        return {"jax": jnp.asarray, "array": np.asarray, "scalar": lambda x: x[()]}[kind](array)

    def _object(self, module: str, name: str, nodes: dict[str, Any]):
        kind: Any = _class(module, name)
        if not _is_storable(kind):
            if module not in sys.modules:
                why = f"which is not imported. Import {module}, if you trust it, and load again."
            elif kind is None:
                why = f"but {module} has no {name}. Give it its name back, and load again."
            else:
                why = "which is no equinox module and no NamedTuple: such a thing is not made from a file."
            raise ValueError(f"{self.where} holds a {module}.{name}, {why}")
        values = {field: self.value(node) for field, node in nodes.items()}
        fields = {f.name: f for f in dataclasses.fields(kind)} if issubclass(kind, eqx.Module) else kind._fields
        if other := sorted(values.keys() - set(fields)):
            raise ValueError(f"{self.where} was saved with another {name}: this one has no {', '.join(other)}.")
        if not isinstance(fields, dict):
            return tuple.__new__(cast(Any, kind), [values[field] for field in fields])
        instance = object.__new__(kind)
        for field, declared in fields.items():
            default = (
                declared.default if declared.default_factory is dataclasses.MISSING else declared.default_factory()
            )
            if (value := values.get(field, default)) is dataclasses.MISSING:
                raise ValueError(f"{self.where} was saved with another {name}: it has no {field}.")
            object.__setattr__(instance, field, value)
        return instance


def _little(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")


def _class(module: str, name: str) -> Any:
    """The class of this name, or None.

    A class of this library is found in whichever module holds it today; others at the top level of their module, which
    must be imported, or in a class there.
    """
    package = __name__.split(".")[0]
    if module.split(".")[0] == package:
        with contextlib.suppress(ModuleNotFoundError):  # the class has moved since the file was saved
            importlib.import_module(module.rpartition(".")[0] or module)
        name = RENAMED.get(name, name)
        kinds = [vars(m).get(name) for place, m in sorted(sys.modules.items()) if place.startswith(f"{package}.")]
        return next((k for k in kinds if _is_storable(k) and k.__module__.startswith(f"{package}.")), None)
    kind: Any = sys.modules.get(module)
    for part in name.split("."):
        kind = vars(kind).get(part) if hasattr(kind, "__dict__") else None
    return kind


def _is_storable(kind: Any) -> bool:
    """True for classes whose instances a file may hold: equinox modules and NamedTuples."""
    if not isinstance(kind, type):
        return False
    return issubclass(kind, eqx.Module) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))

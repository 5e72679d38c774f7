"""Content digest of an object, the same in every process: arrays by value, functions by their code."""

import enum
import functools
import hashlib
import sys
import sysconfig
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physppl.internal.keys import parts

LIBRARIES = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def fingerprint(value: Any) -> str:
    """Hexadecimal SHA-256 of an object's content.

    Functions enter by their code, their defaults, what they close over and the globals that they use, recursively
    through the functions among these; classes of your own by their methods; installed code, this library's algebra
    included, by name. Objects enter by their type, and by their fields or attributes; of a class with
    `content_is_public = True` private attributes, such as live connections and caches, do not count.
    """
    digest = _Digest()
    digest.feed(value)
    return digest.sha.hexdigest()


class _Digest:
    def __init__(self):
        self.sha = hashlib.sha256()
        self.seen: dict[int, int] = {}  # functions, classes and objects on the way to this one, in order of appearance
        self.references: list[Any] = []  # keep ids unique

    def add(self, *texts) -> None:
        self.sha.update("\x1f".join(map(str, texts)).encode() + b"\x1e")

    def feed(self, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | enum.Enum | range | slice):
            return self.add(type(value).__qualname__, repr(value))
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            array = np.ascontiguousarray(value)
            self.add("array", array.dtype, array.shape)
            return self.sha.update(array.tobytes())
        if id(value) in self.seen:
            return self.add("seen", self.seen[id(value)])
        self.seen[id(value)] = len(self.seen)
        self.references.append(value)
        if isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, ModuleType):
            self.add("module", value.__name__)
        elif isinstance(value, CodeType):
            self.add("code", value.co_name, value.co_code.hex(), value.co_names, value.co_varnames)
            self.feed(value.co_consts)
        elif isinstance(value, MethodType):
            self.feed((value.__self__, value.__func__))
        elif isinstance(value, functools.partial):
            self.feed((value.func, value.args, value.keywords))
        elif isinstance(value, property | staticmethod | classmethod):
            self.feed([getattr(value, name, None) for name in ("fget", "fset", "__func__")])
        elif isinstance(value, set | frozenset):
            self.feed(sorted(map(fingerprint, value)))
        elif callable(value) and hasattr(value, "__wrapped__"):  # jitted or cached
            self.feed((type(value), getattr(value, "__wrapped__", None)))
        else:
            self._object(value)
        return None

    def _function(self, value: FunctionType) -> None:
        self.add("function", value.__module__, value.__qualname__)
        if value.__module__ not in (None, "builtins") and _installed(value.__module__):  # these two: from `exec`
            return
        self.feed((value.__code__, value.__defaults__, value.__kwdefaults__))
        for cell in value.__closure__ or ():
            try:
                self.feed(cell.cell_contents)
            except ValueError:  # a name that is bound later
                self.add("empty")
        for name in _names(value.__code__):
            if name in value.__globals__:
                self.add(name)
                self.feed(value.__globals__[name])

    def _class(self, value: type) -> None:
        self.add("class", value.__module__, value.__qualname__)
        if _installed(value.__module__):
            return
        self.feed(value.__bases__)
        for name, part in sorted(vars(value).items()):
            if isinstance(part, FunctionType | property | staticmethod | classmethod | int | float | str):
                self.add(name)
                self.feed(part)

    def _object(self, value: Any) -> None:
        self.feed(type(value))
        self.add(getattr(value, "__module__", ""), getattr(value, "__name__", ""))  # identifies builtins
        composite = parts(value)
        if composite is None:
            public = getattr(type(value), "content_is_public", False)
            attributes = getattr(value, "__dict__", {})
            composite = {k: v for k, v in attributes.items() if not (public and k.startswith("_"))}
        for name, part in composite.items():
            self.feed(name)
            self.feed(part)


def _names(code: CodeType) -> tuple[str, ...]:
    """Globals that a code object may use, including those of functions inside it."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return tuple(dict.fromkeys((*code.co_names, *inner)))


@functools.cache
def _installed(module: str | None) -> bool:
    """True if a module belongs to Python, to an installed package or to this library, except its machines."""
    if module is None or module == "builtins":
        return True
    if module.split(".")[0] == "physppl":
        return module.split(".")[1:2] != ["models"]
    file = getattr(sys.modules.get(module), "__file__", None)
    return module != "__main__" and (file is None or file.startswith(LIBRARIES))

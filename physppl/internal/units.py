"""Units of measurement, parsed by pint: shown in tables and plots, converted where data are read."""

import functools

UNITLESS = ""


@functools.cache
def _registry():
    import pint  # 0.3 s; only where a unit is parsed

    registry = pint.UnitRegistry()
    registry.formatter.default_sort_func = None  # factors in the order in which they are written: N·m, not m·N
    return registry


@functools.cache
def parse(unit: str, where: str) -> str:
    """The unit in pint's short form, e.g. "N m s/rad" -> "m*N*s/rad".

    Raises:
        ValueError: where pint does not know the unit.
    """
    if unit == UNITLESS:
        return unit
    try:
        return f"{_registry().parse_units(unit):~C}"
    except Exception as error:  # pint raises several unrelated types
        raise ValueError(f"{where}: unit {unit!r} is not understood ({error}). Write it as in 'N m s/rad'.") from None


@functools.cache
def factor(source: str, target: str, where: str) -> float:
    """Factor that converts a number in `source` to `target`.

    Raises:
        ValueError: where the two have different dimensions, or one is an offset unit such as degC.
    """
    if source == target:
        return 1.0
    try:
        ureg = _registry()
        offset = ureg.Quantity(0.0, source).to(target).magnitude
        scale = ureg.Quantity(1.0, source).to(target).magnitude
    except Exception as error:
        raise ValueError(f"{where}: cannot convert {source!r} to {target!r} ({error}).") from None
    if offset != 0.0:
        raise ValueError(f"{where}: {source!r} to {target!r} has an offset; convert it beforehand.")
    return float(scale)


def label(name: str, unit: str) -> str:
    """`name [unit]`, or the name alone."""
    return f"{name} [{pretty(unit)}]" if unit else name


@functools.cache
def pretty(unit: str) -> str:
    """The unit in print: N·m·s/rad."""
    # Pint 0.26 writes another dot (U+22C5); one sign whatever the version.
    return f"{_registry().parse_units(unit):~P}".replace("\u22c5", "·") if unit else ""

"""Units of measurement, parsed by pint: shown in tables and plots, converted where data are read."""

import functools
import re
from typing import Any

UNITLESS = ""
# What is often written, and what was meant: pint reads Nm as a measure of yarn, and rads as absorbed doses.
MISSPELT = {
    "Nm": "N m", "mNm": "mN m", "kNm": "kN m", "Nms": "N m s", "Ns": "N s", "Vs": "V s", "As": "A s", "Ah": "A hour",
    "kgm": "kg m", "rads": "rad", "rev": "turn", "revs": "turn", "degs": "deg", "secs": "s", "mps": "m/s", "RPM": "rpm",
}  # fmt: skip


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
    if not isinstance(unit, str):
        raise ValueError(f"{where}: a unit is text, as in 'rad/s'; got {unit!r}. A typical size is scale={unit!r}.")
    _refuse_misspelt(unit, where)
    try:
        return f"{_registry().parse_units(unit):~C}"
    except Exception as error:  # pint raises several unrelated types
        raise ValueError(f"{where}: unit {unit!r} is not understood ({error}). Write it as in 'N m s/rad'.") from None


@functools.cache
def factor(source: str, target: str, where: str) -> float:
    """Factor that converts a number in `source` to `target`; `source` may have a number, as in "turn/4096".

    Raises:
        ValueError: where the two have different dimensions, or one is an offset unit such as degC; where one has a turn
            or radian and the other has not.
    """
    if source == target:
        return 1.0
    _refuse_misspelt(source, where)
    try:
        ureg = _registry()
        zero: Any
        one: Any
        try:
            zero, one = ureg.Quantity(0.0, source), ureg.Quantity(1.0, source)
        except ValueError:  # "Unit expression cannot have a scaling factor."
            one = ureg.parse_expression(source)
            zero = 0.0 * one
        offset, scale = float(zero.to(target).magnitude), float(one.to(target).magnitude)
        same = one.to_root_units().units == ureg.Quantity(1.0, target).to_root_units().units
    except Exception as error:
        raise ValueError(f"{where}: cannot convert {source!r} to {target!r} ({error}).") from None
    if offset != 0.0:
        raise ValueError(f"{where}: {source!r} to {target!r} has an offset; convert it beforehand.")
    if not same:
        raise ValueError(
            f"{where}: {source!r} to {target!r}: an angle is no pure number, nor is a count. Write turns or radians: "
            "turn/s or rpm for a rate (one turn is 2 pi rad), turn/4096 for an encoder of 4096 counts a turn."
        )
    return scale


@functools.cache
def is_angle(unit: str) -> bool:
    """True for rad, deg, turn and other units of an angle alone."""
    if unit == UNITLESS:
        return False
    root = _registry().Quantity(1.0, unit).to_root_units().units
    return root == _registry().Unit("rad")


def _refuse_misspelt(unit: str, where: str) -> None:
    """Refuse units that pint takes for something else, or does not know, with what was meant."""
    for word in re.findall(r"[^\W\d]+", unit):
        if meant := MISSPELT.get(word):
            raise ValueError(
                f"{where}: unit {unit!r}: {word!r} is no unit. Did you mean {unit.replace(word, meant)!r}?"
            )


def label(name: str, unit: str) -> str:
    """`name [unit]`, or the name alone."""
    return f"{name} [{pretty(unit)}]" if unit else name


@functools.cache
def pretty(unit: str) -> str:
    """The unit in print: N·m·s/rad."""
    # Pint 0.26 writes another dot (U+22C5); one sign whatever the version.
    return f"{_registry().parse_units(unit):~P}".replace("\u22c5", "·") if unit else ""

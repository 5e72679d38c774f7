"""Objects that hold choices, whose numbers are checked as they are made."""

import dataclasses
import functools
import math
from numbers import Integral, Real
from types import UnionType
from typing import Union, get_args, get_origin

import equinox as eqx


class Choices(eqx.Module):
    """An immutable object of choices: a field annotated `int` takes whole numbers, one annotated `float` numbers.

    Ranges are the classes' own (`__check_init__`); what they compare is a number then.

    Raises:
        ValueError: naming the class and the choice.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if check := cls.__dict__.get("__check_init__"):  # Equinox runs a subclass's checks before those of its bases

            @functools.wraps(check)
            def after_numbers(self):
                _check_numbers(self)
                check(self)

            cls.__check_init__ = after_numbers

    def __check_init__(self):
        _check_numbers(self)


def _check_numbers(choices: Choices) -> None:
    for field in dataclasses.fields(choices):
        union = get_origin(field.type) in (Union, UnionType)
        value, kinds = getattr(choices, field.name), get_args(field.type) if union else (field.type,)
        if not any(kind in kinds for kind in (int, float)) or any(k not in (int, float, type(None)) for k in kinds):
            continue
        if hasattr(value, "aval") or (value is None and type(None) in kinds):  # arrays may be traced
            continue
        number = isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
        if not number or (float not in kinds and not isinstance(value, Integral)):
            kind = "number" if float in kinds else "whole number"
            raise ValueError(f"{type(choices).__name__}: {field.name} must be a {kind}; got {value!r}.")

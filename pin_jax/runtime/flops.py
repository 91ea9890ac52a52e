"""Counting the floating-point operations of a function from its jaxpr, where scans count every iteration.

XLA's own cost analysis counts the body of a loop once, which for stacked layers is a small share of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable, *args: Any, trips: int = 1, **kwargs: Any) -> int:
    """Operations of the matrix products and convolutions of one call; a multiply and an add are two.

    Args:
      args, kwargs: of the function; shapes (`jax.ShapeDtypeStruct`) will do.
      trips: how often a `while` loop runs, whose number of rounds no jaxpr tells.
    """
    return _count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr, trips)


def _count(jaxpr: core.Jaxpr, trips: int) -> int:
    return sum(_equation(eqn, trips) for eqn in jaxpr.eqns)


def _equation(eqn: Any, trips: int) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * math.prod(eqn.outvars[0].aval.shape) * inner
    if name == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval.shape, params["dimension_numbers"]
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    inside = [_count(jaxpr, trips) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "scan":
        return params["length"] * sum(inside)
    if name == "while":
        return trips * sum(inside)
    return max(inside, default=0) if name == "cond" else sum(inside)


def _jaxprs(value: Any) -> Iterator[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):  # pyright: ignore[reportPrivateImportUsage]
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _jaxprs(item)

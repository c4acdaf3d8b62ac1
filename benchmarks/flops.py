"""Exact floating-point operations of a JAX program, read from its jaxpr.

The compiler's own count takes the body of a loop once, however often it runs; this one
multiplies by the trip count. It counts the program as written, before the compiler
merges or drops anything:

    matrix products, convolutions    2 for each multiply-add
    arithmetic on floats             1 for each element written (an exp as an add)
    sums, maxima, cumulative sums    1 for each element read
    scatter-add                      1 for each element of the updates

Integers, comparisons, selections, gathers, random bits and changes of shape or type
count for nothing. Of a `cond` the dearest branch counts. A program for several devices
is counted for one of them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core


class Flops(NamedTuple):
    """Operations in matrix products and convolutions, and all the others."""

    matmul: int
    other: int

    @property
    def total(self) -> int:
        return self.matmul + self.other


ARITHMETIC = frozenset(
    "abs acos acosh add add_any asin asinh atan atan2 atanh cbrt ceil clamp cos cosh "
    "digamma div erf erf_inv erfc exp exp2 expm1 floor integer_pow lgamma log log1p "
    "logistic max min mul neg pow rem round rsqrt sign sin sinh sqrt square sub tan "
    "tanh".split()
)
REDUCTIONS = frozenset(
    "cumlogsumexp cummax cummin cumprod cumsum reduce_max reduce_min reduce_prod "
    "reduce_sum".split()
)
SCATTERS = frozenset("scatter-add scatter-mul scatter-sub".split())


def count(fn: Callable, *args: Any, while_trips: int | None = None) -> Flops:
    """Floating-point operations of `fn(*args)`.

    Args:
        fn: jitted or not; it is traced and not run.
        args: arrays, or `jax.ShapeDtypeStruct`s.
        while_trips: how often each `while` runs; its trip count is not in the program.

    Raises:
        ValueError: if there is a `while` with arithmetic in it, and no `while_trips`.
    """
    return count_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr, while_trips=while_trips)


def count_jaxpr(jaxpr: core.Jaxpr, *, while_trips: int | None = None) -> Flops:
    """The same for a program that is already traced."""
    matmul = other = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        own = _own(eqn)
        # What a scatter holds is the sum of two scalars, counted in its own.
        bodies = [] if name.startswith("scatter") else core.jaxprs_in_params(eqn.params)
        inner = [count_jaxpr(body, while_trips=while_trips) for body in bodies]
        if name == "cond":
            inner = [max(inner, key=lambda f: f.total)]
        trips = _trips(eqn, inner, while_trips)
        matmul += own.matmul + trips * sum(f.matmul for f in inner)
        other += own.other + trips * sum(f.other for f in inner)
    return Flops(matmul, other)


def _trips(eqn: core.JaxprEqn, inner: list[Flops], while_trips: int | None) -> int:
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name != "while" or not any(f.total for f in inner):
        return 1
    if while_trips is None:
        raise ValueError(
            "a while loop does not say how often it runs: give while_trips, or write "
            "it as a scan"
        )
    return while_trips


def _own(eqn: core.JaxprEqn) -> Flops:
    name = eqn.primitive.name
    out: Any = eqn.outvars[0].aval if eqn.outvars else None
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        lhs: Any = eqn.invars[0].aval
        depth = math.prod(lhs.shape[i] for i in contracted)
        return Flops(2 * math.prod(out.shape) * depth, 0)
    if name == "conv_general_dilated":
        kernel: Any = eqn.invars[1].aval
        features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        depth = math.prod(kernel.shape) // features
        return Flops(2 * math.prod(out.shape) * depth, 0)
    if not jnp.issubdtype(getattr(out, "dtype", jnp.int32), jnp.floating):
        return Flops(0, 0)
    if name in ARITHMETIC:
        return Flops(0, math.prod(out.shape))
    if name in REDUCTIONS or name in SCATTERS:
        read: Any = eqn.invars[2 if name in SCATTERS else 0].aval
        return Flops(0, math.prod(read.shape))
    return Flops(0, 0)

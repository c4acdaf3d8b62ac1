"""What a thing is called in rows and by flags, and what tells it from others.

Ours have a name of a registry. The user's own go wherever ours go: a plain function is
called what it is called in Python, anything else what `named` calls it.
"""

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Named(NamedTuple):
    """Something of the user's with the name it has in results; see `named`."""

    name: str
    value: Any


def named(name: str, value: Any) -> Named:
    """Calls an object by a name, as in `model=named("my net", make_net)`.

    Args:
        name: what rows say; the same name must always mean the same thing.
        value: a model, query, selection, objective, optimizer, ...
    """
    return Named(name, value)


def name_of(thing: Any) -> str:
    """The name of a thing: a string is its own.

    Raises:
        ValueError: for what has none, a lambda say.
    """
    if isinstance(thing, str):
        return thing
    name = thing.name if isinstance(thing, Named) else getattr(thing, "__name__", "")
    if not isinstance(name, str) or not name or name.startswith("<"):
        raise ValueError(
            f"{thing!r} has no name that rows could tell it by: give "
            'named("its name", it), or a function made with def'
        )
    return name


def resolve(thing: Any, registry: Mapping[str, Any], what: str) -> Any:
    """The object of a name of ours, or the user's own object.

    Args:
        thing: a name of `registry`, something `named`, or the object itself.
        registry: ours.
        what: the kind of thing, for the error.

    Raises:
        ValueError: for a name that is not there, listing those that are.
    """
    if isinstance(thing, Named):
        return thing.value
    if not isinstance(thing, str):
        return thing
    if thing not in registry:
        known = ", ".join(sorted(registry))
        raise ValueError(f"unknown {what} {thing!r}; known: {known}")
    return registry[thing]


def described(thing: Any) -> Any:
    """What tells a thing from others, as JSON.

    Settings (frozen dataclasses) are told by their fields that differ from the
    default, so that a new field with a default changes no description. A function is
    told by its name and a digest of its code and of the plain values it closes over.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, Named):
        return {"name": thing.name, "is": described(thing.value)}
    if isinstance(thing, types.FunctionType):
        return {"name": thing.__qualname__, "code": _code(thing)}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        told = {}
        for field in dataclasses.fields(thing):
            value = getattr(thing, field.name)
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            same = default is not dataclasses.MISSING and type(value) is type(default)
            if not same or value != default:
                told[field.name] = described(value)
        return told
    if isinstance(thing, Mapping):
        return {str(key): described(value) for key, value in thing.items()}
    if isinstance(thing, tuple | list):
        return [described(item) for item in thing]
    if hasattr(thing, "shape") and hasattr(thing, "dtype"):
        return hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()
    if hasattr(thing, "__wrapped__"):  # compiled by jit
        return described(thing.__wrapped__)
    return type(thing).__qualname__


def digest(value: Any, length: int = 16) -> str:
    """The first hexadecimal digits of the sha256 of what JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _code(function: types.FunctionType) -> str:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(described(cell.cell_contents))
        except ValueError:  # not yet filled: the function refers to itself
            cells.append(None)
    told = [_told(function.__code__), described(function.__defaults__), cells]
    return digest(told)


def _told(code: types.CodeType) -> list[Any]:
    constants = [
        _told(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]

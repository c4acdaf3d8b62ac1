"""A frozen dataclass becomes the flags of an experiment, and back.

Every setting is written once: its name, default, choices and help in the dataclass.
Explicit flags win over a preset, a preset over what is best for the model, and that
over the defaults.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags


def setting(default: Any, text: str, *, choices: tuple[str, ...] | None = None) -> Any:
    """A field of a Config with its help."""
    return dataclasses.field(
        default=default, metadata={"help": text, "choices": choices}
    )


def define_flags(config: type, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Defines a flag for each field of `config`, and `--preset`."""
    for field in dataclasses.fields(config):
        text, choices = field.metadata["help"], field.metadata["choices"]
        default: Any = field.default
        if choices:
            flags.DEFINE_enum(field.name, default, list(choices), text)
        elif isinstance(default, bool):
            flags.DEFINE_bool(field.name, default, text)
        elif isinstance(default, int):
            flags.DEFINE_integer(field.name, default, text)
        elif isinstance(default, float):
            flags.DEFINE_float(field.name, default, text)
        elif isinstance(default, tuple):
            flags.DEFINE_multi_string(field.name, list(default), text)
        else:
            flags.DEFINE_string(field.name, default, text)
    names = [field.name for field in dataclasses.fields(config)]
    if presets:
        known = "settings of a paper, its flaws included; explicit flags win"
        flags.DEFINE_enum("preset", None, sorted(presets), known)
        names.append("preset")
    for name in names:  # so that --help lists them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def from_flags(
    config: type,
    presets: Mapping[str, Mapping[str, Any]],
    of_model: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """The Config that the command line asks for.

    Args:
        config: the dataclass.
        presets: settings of papers, by name.
        of_model: what is best for a model, where that is not the default.
    """
    preset = flags.FLAGS.preset if presets else None
    values = dict(presets[preset]) if preset else {}
    for field in dataclasses.fields(config):
        flag = flags.FLAGS[field.name]
        if flag.present:
            given = flag.value
            values[field.name] = tuple(given) if isinstance(given, list) else given
    if of_model:
        values = {**of_model.get(values.get("model", config.model), {}), **values}
    return config(**values)


def chosen_preset(presets: Mapping[str, Any]) -> str | None:
    """The name given to `--preset`."""
    return flags.FLAGS.preset if presets else None

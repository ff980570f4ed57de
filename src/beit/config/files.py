"""Configurations on disk, and how defaults, presets, files and flags are laid over one another."""

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from beit.config.errors import UserError
from beit.config.values import EXCLUSIVE, defaults_of, typed

ALTERNATIVES = (("steps", "epochs", "budget"), ("warmup_steps", "warmup_epochs"), *EXCLUSIVE)
"""Ways to say one thing: a layer that says one of them silences the others in the layers below."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-3`` as a number, which plain PyYAML takes for text, and knows no aliases: a few lines
    of them make gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name); write the value out")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)
# SafeLoader's own rules come first, so whole numbers stay whole.


def to_yaml(config: Any, heading: str = "") -> str:
    """A configuration, or its values by name, as YAML with an optional comment on top."""
    values = config if isinstance(config, Mapping) else dataclasses.asdict(config)
    text = yaml.safe_dump(plain(values), sort_keys=False, allow_unicode=True)
    return "".join(f"# {line}\n" for line in heading.splitlines()) + text


def plain(value: Any) -> Any:
    """`value` with tuples as lists and paths as text: what YAML and JSON can say."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_yaml(path: str | Path, config_type: type) -> dict[str, Any]:
    """The fields that the file at `path`, which a user named, gives, checked against `config_type`.

    Raises:
        UserError: the file cannot be read, a key is unknown, or a value has the wrong type.
    """
    name = f"--config {path}"
    values, unknown = read_record(path, config_type, name)
    for key in unknown:
        near = difflib.get_close_matches(key, typing.get_type_hints(config_type), n=1)
        raise UserError(f"{name}: unknown key {key!r}{f'; did you mean {near[0]}?' if near else ''}")
    return values


def read_record(path: str | Path, config_type: type, name: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The fields that a run's own configuration at `path`, called `name` in messages, gives, checked as by
    :func:`read_yaml`, and those of its keys that are none: a run may be older or newer than this program."""
    name = name or str(path)
    values = read_values(path, name)
    hints = typing.get_type_hints(config_type)
    return fields_of(values, config_type, name), [str(key) for key in values if key not in hints]


def read_values(path: str | Path, name: str) -> dict[str, Any]:
    """Values by name from the YAML file at `path`, called `name` in messages; UserError for any other content."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(values, dict):
        raise UserError(f"{name} must hold one `name: value` a line")
    if "gradient_checkpointing" in values:  # until 0.2 a knob of beit segment
        values["checkpoint_activations"] = "on" if values.pop("gradient_checkpointing") else "off"
    return values


def fields_of(values: Mapping[str, Any], config_type: type, name: str) -> dict[str, Any]:
    """Those of `values`, as YAML or JSON can say them, that are fields of `config_type`, as their types ask."""
    hints = typing.get_type_hints(config_type)
    return typed({key: value for key, value in values.items() if key in hints}, hints, f"{name}: ")


def layered(config_type: type, layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The defaults of `config_type` overlaid with each of `layers` in turn; later ones win."""
    return overlaid([defaults_of(config_type), *layers])


def overlaid(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`layers` laid over one another; later ones win."""
    values: dict[str, Any] = {}
    for layer in layers:
        for group in ALTERNATIVES:
            if sum(layer.get(name) is not None for name in group) == 1:
                values.update({name: None for name in group if name in values})
        values.update(layer)
    return values


def cache_folder() -> Path:
    """Where downloads go: $BEIT_CACHE, or ~/.cache/beit."""
    return Path(os.environ.get("BEIT_CACHE") or Path.home() / ".cache" / "beit")

"""A run's YAML file → its options, checked: what ``run`` and ``listening`` have in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from ..errors import ConfigError

Options = TypeVar("Options")


def read_yaml(path: Path, kind: type[Options], parts: Iterable[Any]) -> Options:
    """A YAML file → ``kind``, a dataclass; ``parts``: the dataclasses inside it. Raises ConfigError that names the key and the nearest
    valid one."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    try:
        return TypeAdapter(kind).validate_python(raw, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        everything: list[Any] = [kind, *parts]
        names = [name for part in everything for name in part.__dataclass_fields__]
        near = difflib.get_close_matches(str(first["loc"][-1]) if first["loc"] else "", names, n=1)
        hint = f"; the nearest key is {near[0]!r}" if near and first["type"] != "missing" else ""
        raise ConfigError(f"{path}: {where}: {first['msg']}{hint}") from error

"""All options as one table, made from their models: docs/options.md, and what ``dragoman options`` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from .config import Options, option_fields, variable

_HEAD = """\
# Options

Made from the code by `dragoman options`; a test compares. Of the same option the right-hand one wins:

    default  <  YAML file (--config)  <  environment variable  <  --set KEY=VALUE  <  flag

In a variable or behind `--set`, lists are parted by commas, and `none` stands for nothing where that is a choice. An unknown key or
variable is an error that names the nearest one. Flags cannot say `auto`, `nothing` or `false`; `--set` can.
`configs/default.yaml` is a file to copy.

"""


def options_page(flags: Mapping[str, str]) -> str:
    """Markdown. ``flags``: the flags that options have of their own, by dotted key."""
    rows = ["| option | default | allowed | flag | environment variable | |", "|---|---|---|---|---|---|"]
    for dotted, field in option_fields():
        flag = f"`{flags[dotted]}`" if dotted in flags else ""
        shown = (f"`{dotted}`", _default(field.get_default()), _allowed(dotted), flag, f"`{variable(dotted)}`", field.description or "")
        rows.append("| " + " | ".join(shown) + " |")
    return _HEAD + "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    if value is None:
        return "none"
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def _allowed(dotted: str) -> str:
    """What a value may be, from the JSON schema of the option."""
    schema = _schema(dotted)
    kinds = [cast(dict[str, Any], kind) for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    (kind,) = kinds
    if "enum" in kind:
        return ", ".join(f"`{name}`" for name in kind["enum"])
    if kind["type"] == "boolean":
        return "`true`, `false`"
    if kind["type"] in ("string", "array"):
        return {"string": "text", "array": "list"}[kind["type"]]
    low, high = kind.get("minimum", kind.get("exclusiveMinimum")), kind.get("maximum", kind.get("exclusiveMaximum"))
    above, below = "above " * ("exclusiveMinimum" in kind), "below " * ("exclusiveMaximum" in kind)
    return f"{above}{low} to {below}{high}" if high is not None else f"{above}{low}" if above else f"from {low}"


def _schema(dotted: str) -> dict[str, Any]:
    whole = Options.model_json_schema()
    *sections, name = dotted.split(".")
    part: dict[str, Any] = whole
    for section in sections:
        inner: dict[str, Any] = part["properties"][section]
        part = whole["$defs"][inner["$ref"].rsplit("/", 1)[-1]]
    return part["properties"][name]

"""Writes the reference pages from the code: `python docs/reference/generate.py`.

A test (`tests/test_reference.py`) fails as long as the pages are not what this would write.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PLUGINS = FOLDER.parents[1] / "plugins"
NOTE = "<!-- Written by docs/reference/generate.py: change the code, and run it. -->"


# --- hooks and contracts -------------------------------------------------------------------------


def hooks() -> str:
    """Every hook with its exact signature, and what hooks return."""
    from themis_core.hooks import FAMILIES, descriptors, findings, specs

    lines = [
        "# Hooks",
        "",
        NOTE,
        "",
        "A plugin is a module, named by an entry point of the group `themis`, with functions of",
        "these names, marked `@themis_core.hooks.hookimpl`. They are called once, at start-up,",
        "return descriptors, and must not import what they describe. `themis new-plugin` writes",
        "examples.",
        "",
        "| Family | Hook | Returns |",
        "|---|---|---|",
    ]
    lines += [f"| {f} | `themis_{f}` | `{kind.__name__}` |" for f, kind in FAMILIES.items()]
    for node in _definitions(specs, ast.FunctionDef):
        if any(isinstance(d, ast.Name) and d.id == "hookspec" for d in node.decorator_list):
            lines += ["", f"## `{node.name}`", "", *_function(node)]
    lines += ["", "# What hooks return"]
    for module in (descriptors, findings):
        for node in _definitions(module, ast.ClassDef):
            lines += ["", f"## `{node.name}`", "", *_class(node)]
    return "\n".join(lines) + "\n"


CONTRACTS = (
    "themis_core.contracts.backend",
    "themis_engine.runner",
    "themis_core.contracts.transport",
    "themis_core.contracts.cache",
    "themis_core.contracts.quota",
    "themis_core.contracts.validator",
    "themis_core.contracts.budget",
)


def contracts() -> str:
    """Every contract, method by method."""
    lines = [
        "# Contracts",
        "",
        NOTE,
        "",
        "What plugins implement. Each has a conformance kit in `themis_testkit`, which checks what",
        "is written here: [conformance](../conformance.md).",
    ]
    for name in CONTRACTS:
        for node in _definitions(importlib.import_module(name), ast.ClassDef):
            lines += ["", f"## `{node.name}`", "", f"In `{name}`.", "", *_class(node)]
    return "\n".join(lines) + "\n"


def _definitions(module: Any, kind: type[Any]) -> Iterator[Any]:
    """The public definitions of a module, as syntax, in their order; `lines` is their source."""
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        if isinstance(node, kind) and not node.name.startswith("_"):
            for part in ast.walk(node):
                part.lines = source.splitlines()  # type: ignore[attr-defined]
            yield node


def _class(node: ast.ClassDef) -> Iterator[str]:
    bases = [ast.unparse(base) for base in node.bases]
    if bases:
        yield f"Bases: {', '.join(f'`{base}`' for base in bases)}."
        yield ""
    yield from _documentation(node)
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    if fields:
        texts = (_source(field, field.lineno, field.end_lineno) for field in fields)
        yield from ["", "```python", *texts, "```"]
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name[0] != "_":
            yield from ["", f"### `{node.name}.{part.name}`", "", *_function(part)]


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    decorators = [f"@{ast.unparse(decorator)}" for decorator in node.decorator_list]
    head = _source(node, node.lineno, node.body[0].lineno - 1)
    yield "```python"
    yield from [decorator for decorator in decorators if decorator == "@property"]
    yield from [f"{head} ...", "```", ""]
    yield from _documentation(node)


def _source(node: ast.AST, first: int, last: int | None) -> str:
    """Lines of the source (from 1), exactly as they are."""
    lines: list[str] = node.lines  # type: ignore[attr-defined]
    return textwrap.dedent("\n".join(lines[first - 1 : last]))


def _documentation(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node)
    assert text, f"{node.name} has no docstring"
    yield from text.splitlines()


# --- configuration -------------------------------------------------------------------------------


def configuration() -> str:
    """Every key, from the JSON Schema that `themis config schema` prints."""
    schema = _schema()
    top = schema["properties"]
    lines = [
        "# Configuration",
        "",
        NOTE,
        "",
        "Every key of `themis.toml`, with the plugins of this repository. `themis config schema`",
        "prints the same for what is installed, `themis config init` writes a sample, and",
        "[configuration](../configuration.md) explains files, environment, secrets and reloading.",
        "",
        "## The top of the file",
        "",
        *_table({name: top[name] for name in ("include", "default")}, schema),
        "",
        *_group("server", "[server]", "use", top["server"]["anyOf"], schema),
        *_group(
            "models",
            "[models.NAME]",
            "backend",
            [
                m
                for m in top["models"]["additionalProperties"]["anyOf"]
                if "backend" in m["required"]
            ],
            schema,
        ),
    ]
    lines += _hooks_table(schema)
    return "\n".join(lines) + "\n"


def _schema() -> Mapping[str, Any]:
    from themis_core.config.schema import json_schema
    from themis_core.plugins import Registry, discover

    ours = {path.parent.name for path in PLUGINS.glob("*/pyproject.toml")} | {"testkit"}
    names = {f"themis-{name.replace('_', '-')}" for name in ours}
    found = [candidate for candidate in discover() if candidate.distribution in names]
    missing = names - {candidate.distribution for candidate in found}
    if missing:
        raise SystemExit(
            f"The reference needs all plugins installed: {', '.join(sorted(missing))}."
        )
    return json_schema(Registry(found))


def _group(
    name: str, title: str, chooser: str, variants: list[Any], schema: Mapping[str, Any]
) -> Iterator[str]:
    """The keys that all variants have, which are the core's, then those of each plugin."""
    from themis_core.config.settings import ModelKeys, ServerKeys

    kind = {"server": ServerKeys, "models": ModelKeys}[name]
    core = set(kind.__struct_encode_fields__)
    shared = {k: v for k, v in _core_schema(kind).items() if k in core}
    yield from [f"## `{title}`", "", *_table(shared, schema)]
    for variant in sorted(variants, key=lambda v: str(v["properties"][chooser]["const"])):
        plugin = variant["properties"][chooser]
        own = {k: v for k, v in variant["properties"].items() if k not in core}
        yield from ["", f'### `{chooser} = "{plugin["const"]}"`', "", plugin["description"], ""]
        yield from _table(own, schema, set(variant["required"])) if own else ["No settings."]
    yield ""


def _hooks_table(schema: Mapping[str, Any]) -> Iterator[str]:
    from themis_core.config.settings import PluginKeys

    yield from [
        "## `[quota]` and `[validators.NAME]`",
        "",
        *_table(_core_schema(PluginKeys), schema, {"use"}),
        "",
        "Further keys belong to the plugin that `use` names. Validators are asked in their order.",
    ]


def _core_schema(kind: type[Any]) -> dict[str, Any]:
    import msgspec

    (root,), components = msgspec.json.schema_components([kind], ref_template="{name}")
    own: dict[str, Any] = components[root["$ref"]]["properties"]
    _CORE.update({name: c for name, c in components.items() if name != root["$ref"]})
    return own


_CORE: dict[str, Any] = {}


def _table(
    properties: Mapping[str, Any], schema: Mapping[str, Any], required: set[str] | None = None
) -> list[str]:
    lines = ["| Key | Type | Default | |", "|---|---|---|---|"]
    for key, value in properties.items():
        default = "**required**" if key in (required or set()) else _default(value)
        text = value.get("description", "").replace("|", "\\|").replace("\n", " ")
        kind = _type(value, schema).replace("|", "\\|")
        lines.append(f"| `{key}` | {kind} | {default} | {text} |")
        for inner, reference in _references(key, value, schema):
            for name, sub in reference["properties"].items():
                text = sub.get("description", "").replace("|", "\\|")
                needed = name in reference.get("required", [])
                default = "**required**" if needed else _default(sub)
                kind = _type(sub, schema).replace("|", "\\|")
                lines.append(f"| `{inner}.{name}` | {kind} | {default} | {text} |")
    return lines


def _references(
    key: str, value: Mapping[str, Any], schema: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tables that a key may have inside, and what they are called."""
    if "$ref" in value:
        yield key, _referred(value["$ref"], schema)
    for option in value.get("anyOf", []):
        yield from _references(key, option, schema)
    if isinstance(value.get("items"), dict):
        yield from _references(f"{key}[]", value["items"], schema)
    if isinstance(value.get("additionalProperties"), dict):
        yield from _references(f"{key}.NAME", value["additionalProperties"], schema)


def _referred(reference: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = reference.rpartition("/")[2]
    found: Mapping[str, Any] = schema["$defs"].get(name) or _CORE[name]
    return found


def _default(value: Mapping[str, Any]) -> str:
    if "default" not in value or value["default"] is None:
        return ""
    return "" if isinstance(value["default"], dict) else f"`{json.dumps(value['default'])}`"


_WORDS = {"string": "text", "boolean": "true or false", "number": "number", "null": ""}
_LIMITS: dict[str, Callable[[Any], str]] = {
    "minimum": lambda limit: f"≥ {limit}",
    "exclusiveMinimum": lambda limit: f"> {limit}",
    "maximum": lambda limit: f"≤ {limit}",
    "exclusiveMaximum": lambda limit: f"< {limit}",
}


def _type(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(one)}`" for one in value["enum"] if one is not None)
    if "$ref" in value:
        return "table"
    if "anyOf" in value:
        return " or ".join(filter(None, (_type(option, schema) for option in value["anyOf"])))
    match value.get("type"):
        case "array":
            return f"list of {_type(value.get('items') or {}, schema)}"
        case "object":
            inner = value.get("additionalProperties")
            return f"table of {_type(inner, schema)}" if isinstance(inner, dict) else "table"
        case str(name):
            limits = [told(value[limit]) for limit, told in _LIMITS.items() if limit in value]
            return " ".join([_WORDS.get(name, name), *limits]).strip()
    return "anything"


# --- errors and metrics --------------------------------------------------------------------------


def errors() -> str:
    """Every code: its class, whether a retry may help, and what it means."""
    from themis_core.errors import all_error_types

    lines = ["# Error codes", "", NOTE, ""]
    lines += ["[errors](../errors.md) says what to do about each.", ""]
    lines += ["| Code | Class | Retry | Meaning |", "|---|---|---|---|"]
    for kind in all_error_types()[1:]:  # Without their base, which nobody raises.
        meaning = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())
        retry = "yes" if kind.retryable else "no"
        link = f"[`{kind.code}`](../errors.md#{kind.code})"
        lines.append(f"| {link} | `{kind.__name__}` | {retry} | {meaning} |")
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """Every metric of `/metrics`."""
    from themis_openai_server.metrics import HOOK_METRICS, METRICS

    lines = [
        "# Metrics",
        "",
        NOTE,
        "",
        "What `GET /metrics` of the OpenAI-compatible server says.",
        "",
    ]
    for title, labels, family in (
        ("Models", "model", METRICS),
        ("Validators and quota", "hook, call", HOOK_METRICS),
    ):
        lines += [f"## {title}", "", "| Metric | Kind | Labels | |", "|---|---|---|---|"]
        for name, kind, text in family.values():
            lines.append(f"| `{name}` | {kind} | {labels} | {text} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "hooks.md": hooks,
    "contracts.md": contracts,
    "configuration.md": configuration,
    "errors.md": errors,
    "metrics.md": metrics,
}


def main() -> None:
    """Write all pages."""
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
        print(textwrap.shorten(f"Wrote {FOLDER / name}.", 200))  # noqa: T201


if __name__ == "__main__":
    main()

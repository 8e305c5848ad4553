"""The files of a new plugin's package."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib import resources
from string import Template

from themis_core import __version__
from themis_core.cli.scaffold.kinds import KINDS, Kind
from themis_core.errors import InvalidRequest
from themis_core.plugins import discover
from themis_core.suggest import did_you_mean

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_SCHEME = re.compile(r"[a-z][a-z0-9]*")
_LONGEST = 40


def check_name(kind: str, name: str) -> None:
    """Raises `InvalidRequest` for a name that no plugin of this kind can have."""

    def refuse(why: str, remedy: str) -> InvalidRequest:
        return InvalidRequest(f"{name!r} {why}.", field="name", remedy=remedy)

    if not _NAME.fullmatch(name):
        simpler = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
        raise refuse(
            "cannot be a plugin's name",
            "Write small letters, digits and single underscores, beginning with a letter"
            + (f", such as {simpler!r}." if _NAME.fullmatch(simpler) else "."),
        )
    if len(name) > _LONGEST:
        raise refuse(f"is longer than {_LONGEST} characters", "Choose a shorter name.")
    if keyword.iskeyword(name):
        raise refuse("is a word of Python's grammar", f"Write {name}_{kind}, for example.")
    if kind == "transport" and not _SCHEME.fullmatch(name):
        raise refuse(
            "cannot be the scheme of a URL",
            f"Write it without underscores: {name.replace('_', '')!r}.",
        )
    taken = {c.name: f"{c.distribution} {c.version}" for c in discover()}
    if name in taken:
        raise refuse(f"is already a plugin of {taken[name]}", "Choose another name.")
    if importlib.util.find_spec(_module(name)) is not None:
        raise refuse(f"would be the module {_module(name)}, which is there", "Choose another name.")


def package(kind: str, name: str) -> dict[str, str]:
    """The texts of a package by their paths in it. Raises `InvalidRequest`."""
    if kind not in KINDS:
        raise InvalidRequest(
            f"There is no kind {kind!r} of plugins.",
            field="kind",
            remedy=did_you_mean(kind, KINDS) or f"Known: {', '.join(KINDS)}.",
        )
    check_name(kind, name)
    chosen = KINDS[kind]
    values = _values(kind, chosen, name)
    source = f"src/{_module(name)}"
    files = {
        "pyproject.toml": "common/pyproject.toml",
        "README.md": "common/README.md",
        f"{source}/__init__.py": "common/__init__.py",
        f"{source}/py.typed": "common/py.typed",
        f"{source}/plugin.py": "common/plugin.py" if chosen.modules else f"{kind}/plugin.py",
        f"tests/test_{name}.py": f"{kind}/test.py",
    }
    if chosen.modules:
        files[f"{source}/settings.py"] = "common/settings.py"
    files |= {f"{source}/{module}.py": f"{kind}/{module}.py" for module, _ in chosen.modules}
    files |= {f"{source}/data/{file}": f"{kind}/{file}" for file in chosen.data}
    folder = resources.files(__package__) / "templates"
    return {
        path: Template(folder.joinpath(f"{template}.tmpl").read_text("utf-8")).substitute(values)
        for path, template in files.items()
    }


def _module(name: str) -> str:
    return f"themis_{name}"


def _values(kind: str, chosen: Kind, name: str) -> dict[str, str]:
    """What stands in the templates for what differs."""
    api = _api(__version__)
    needed = [
        f"themis-core{api}",
        *([f"themis-engine{api}", "numpy>=1.26"] if chosen.engine else []),
    ]
    needed += ["msgspec>=0.21"] if chosen.modules else []
    class_name = "".join(word.capitalize() for word in name.split("_"))
    source = f"src/{_module(name)}"
    files = [f"    {source}/{module}.py    {what}" for module, what in chosen.modules]
    files += [f"    {source}/data/{file}" for file in chosen.data]
    return {
        "Class": class_name,
        "api": api,
        "dependencies": "\n".join(f'    "{one}",' for one in sorted(needed)),
        "descriptor": chosen.descriptor,
        "distribution": f"themis-{name.replace('_', '-')}",
        "example": Template(chosen.example).substitute(name=name).rstrip(),
        "family": chosen.family,
        "file": chosen.modules[0][0] if chosen.modules else "",
        "files": "\n".join(files),
        "help": chosen.help,
        "kind": kind,
        "module": _module(name),
        "name": name,
        "settings": _settings(class_name, name, chosen),
        "tests": chosen.tests,
        "what": chosen.what,
        "What": chosen.what.capitalize(),
    }


def _settings(class_name: str, name: str, chosen: Kind) -> str:
    head = "import msgspec\n"
    if chosen.settings:
        head = f"from typing import Annotated\n\n{head}"
    kind = "frozen=True, kw_only=True, forbid_unknown_fields=True"
    return (
        f"{head}\n\nclass {class_name}Settings(msgspec.Struct, {kind}):\n"
        f'    """What `{name}` can be told."""\n\n{chosen.settings}'
    ).rstrip()


def _api(version: str) -> str:
    """The versions of Themis whose plugin API is this one's: up to the next that may break it."""
    major, minor = version.split(".")[:2]
    after = f"0.{int(minor) + 1}" if major == "0" else str(int(major) + 1)
    return f">={major}.{minor},<{after}"

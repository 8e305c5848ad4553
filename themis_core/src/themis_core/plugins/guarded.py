"""Running a plugin's own code: whatever it raises becomes an error that names the plugin."""

from __future__ import annotations

import importlib
import logging
import threading
import types
from importlib import metadata
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from themis_core.errors import PluginFailed, PluginIncompatible, ThemisError
from themis_core.hooks import Descriptor
from themis_core.plugins.discovery import CORE_DISTRIBUTION, Candidate, discover

_log = logging.getLogger("themis.plugins")

_PATIENCE = 5.0  # Seconds of an import after which it is named in the log.


def check_version(candidate: Candidate) -> None:
    """Compare the declared plugin-API range with this core. Raises `PluginIncompatible`."""
    version = metadata.version(CORE_DISTRIBUTION)
    try:
        if SpecifierSet(candidate.requires_core).contains(version, prereleases=True):
            return
    except InvalidSpecifier:
        pass  # A range that nobody can read holds nothing.
    raise PluginIncompatible(
        f"Plugin {candidate} is made for themis-core {candidate.requires_core}, "
        f"but {version} is installed.",
        plugin=candidate.name,
        remedy=f"Install a version of {candidate.distribution} for themis-core {version}.",
    )


def import_plugin(candidate: Candidate) -> types.ModuleType:
    """Import what implements a plugin. Raises `PluginFailed`.

    An import that never ends cannot be stopped in this process, but it is named in the log. One
    that crashes ends the process, but the traceback of `faulthandler` names the plugin: it is
    imported from a line of code whose "file" is called so.
    """
    watch = threading.Timer(_PATIENCE, _still_importing, [candidate])
    watch.daemon = True
    watch.start()
    told = f"<plugin {candidate}: see `themis doctor`>"
    namespace = {"import_module": importlib.import_module, "name": candidate.module}
    try:
        exec(compile("module = import_module(name)", told, "exec"), namespace)
        module = namespace["module"]
        assert isinstance(module, types.ModuleType)
        return module
    except KeyboardInterrupt:
        raise
    # Foreign code, `sys.exit` included: whatever it raises is this plugin's failure.
    except BaseException as error:
        raise failed(candidate, f"cannot be imported: {error!r}.", _import_remedy(error)) from error
    finally:
        watch.cancel()
        watch.join()


def make(descriptor: Descriptor, *arguments: Any) -> Any:
    """Import a descriptor's factory and call it. Raises `PluginFailed`, or its `ThemisError`."""
    module_name, _, attribute = descriptor.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
        return factory(*arguments)
    except (KeyboardInterrupt, ThemisError):
        raise
    # Foreign code, `sys.exit` included: whatever it raises is this plugin's failure.
    except BaseException as error:
        raise PluginFailed(
            f"Plugin {descriptor.name!r}{owner_of(module_name)} failed in "
            f"{descriptor.factory}: {error!r}.",
            plugin=descriptor.name,
            remedy=_import_remedy(error) or "Check its settings, or update that distribution.",
        ) from error


def owner_of(module: str) -> str:
    """ " of <distribution> <version>" for the plugin that a module belongs to; empty if unknown."""
    top = module.partition(".")[0]
    for candidate in discover():
        if candidate.module.partition(".")[0] == top:
            return f" of {candidate.distribution} {candidate.version}"
    return ""


def failed(candidate: Candidate, what: str, remedy: str | None = None) -> PluginFailed:
    """The error of a plugin: `what` goes on after its name."""
    return PluginFailed(
        f"Plugin {candidate.name!r} of {candidate.distribution} {candidate.version} {what}",
        plugin=candidate.name,
        remedy=remedy or "Update or uninstall that distribution.",
    )


def _still_importing(candidate: Candidate) -> None:
    _log.warning(
        "Plugin %s is still being imported after %g seconds. Ctrl-C, perhaps twice, stops; "
        "`themis doctor` tells more.",
        candidate,
        _PATIENCE,
    )


def _import_remedy(error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"Install what provides the module {error.name!r}."
    return None

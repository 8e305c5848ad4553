"""Loading plugins, each one guarded: a broken plugin is reported and stops no other."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterable
from importlib import metadata
from typing import Any, Literal, TypeVar, cast

import msgspec
import pluggy
from packaging.specifiers import SpecifierSet

from themis_core.errors import (
    PluginConflict,
    PluginFailed,
    PluginIncompatible,
    PluginNotFound,
    ThemisError,
)
from themis_core.hooks import FAMILIES, PROJECT, BundledModel, Descriptor, specs
from themis_core.plugins.discovery import CORE_DISTRIBUTION, Candidate, discover
from themis_core.suggest import did_you_mean

D = TypeVar("D", bound=Descriptor | BundledModel)


class PluginStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one candidate. `provides` lists `family:name`, of loaded plugins only."""

    name: str
    distribution: str
    version: str
    module: str
    state: Literal["loaded", "failed", "not selected"]
    provides: tuple[str, ...] = ()
    code: str | None = None
    reason: str | None = None


class Registry:
    """The plugins of one runtime. Only those that are asked for by name are imported."""

    def __init__(self, candidates: Iterable[Candidate] | None = None) -> None:
        self._candidates: dict[str, list[Candidate]] = {}
        for candidate in discover() if candidates is None else candidates:
            self._candidates.setdefault(candidate.name, []).append(candidate)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(specs)
        self._loaded: dict[str, dict[str, Descriptor | BundledModel]] = {}
        self._failed: dict[str, ThemisError] = {}

    @property
    def names(self) -> list[str]:
        """The names of all installed plugins, loaded or not."""
        return sorted(self._candidates)

    @property
    def hook(self) -> pluggy.HookRelay:
        """For lifecycle events: calls every loaded plugin."""
        return self._manager.hook

    def load(self, name: str) -> None:
        """Import and register a plugin; loading it again does nothing.

        Raises `PluginNotFound`, `PluginConflict`, `PluginIncompatible` or `PluginFailed`, each
        time it is asked, and reports it in `report` too.
        """
        if name in self._loaded:
            return
        if name not in self._failed:
            try:
                self._loaded[name] = self._load(name)
                return
            except ThemisError as error:
                self._failed[name] = error
        raise self._failed[name]

    def load_all(self) -> None:
        """Load every installed plugin, keeping the failures for `report`."""
        for name in self.names:
            try:
                self.load(name)
            except ThemisError:
                continue  # `report` tells it.

    def find(self, family: str, name: str, kind: type[D]) -> D:
        """The descriptor of a plugin, loading it if need be. Raises as `load` does."""
        self.load(name)
        descriptor = self._loaded[name].get(family)
        if descriptor is None:
            offered = ", ".join(sorted(self._loaded[name]))
            raise PluginNotFound(
                f"Plugin {name!r} offers {offered}, but is used among the {family}.", plugin=name
            )
        return cast(D, descriptor)

    def report(self) -> list[PluginStatus]:
        """Every candidate: loaded, failed (and why), or not selected."""
        return [self._status(c) for found in self._candidates.values() for c in found]

    def _status(self, candidate: Candidate) -> PluginStatus:
        error = self._failed.get(candidate.name)
        loaded = self._loaded.get(candidate.name)
        return PluginStatus(
            name=candidate.name,
            distribution=candidate.distribution,
            version=candidate.version,
            module=candidate.module,
            state="failed" if error else "loaded" if loaded is not None else "not selected",
            provides=tuple(f"{family}:{candidate.name}" for family in loaded or ()),
            code=error.code if error else None,
            reason=str(error) if error else None,
        )

    def _load(self, name: str) -> dict[str, Descriptor | BundledModel]:
        candidate = self._only_candidate(name)
        _check_version(candidate)
        module = _import(candidate)
        try:
            if not self._manager.is_registered(module):  # One module may provide several names.
                self._manager.register(module, name=name)
            self._manager.check_pending()
            return self._collect(candidate, module)
        # Hook functions are foreign code: whatever they raise is this plugin's failure.
        except BaseException as error:
            # Up to 1.6, pluggy keeps a plugin registered that it has just rejected.
            if self._manager.is_registered(module):
                self._manager.unregister(module)
            if isinstance(error, Exception | SystemExit) and not isinstance(error, ThemisError):
                raise _failed(candidate, f"cannot be registered: {error!r}.") from error
            raise

    def _only_candidate(self, name: str) -> Candidate:
        found = self._candidates.get(name, [])
        if not found:
            raise PluginNotFound(
                f"No installed plugin is called {name!r}.",
                plugin=name,
                remedy=did_you_mean(name, self.names)
                or f"Installed are: {', '.join(self.names) or 'none'}.",
            )
        if len(found) > 1:
            owners = " and ".join(f"{c.distribution} {c.version}" for c in found)
            raise PluginConflict(
                f"{owners} both provide a plugin called {name!r}.",
                plugin=name,
                remedy="Uninstall one of them.",
            )
        return found[0]

    def _collect(
        self, candidate: Candidate, module: types.ModuleType
    ) -> dict[str, Descriptor | BundledModel]:
        """The descriptors named like the entry point, by family."""
        provided: dict[str, Descriptor | BundledModel] = {}
        others = set(self._manager.get_plugins()) - {module}
        hooks = self._manager.subset_hook_caller
        for family, kind in FAMILIES.items():
            for descriptors in hooks(f"themis_{family}", others)():
                for descriptor in descriptors:
                    if not isinstance(descriptor, kind):
                        raise _failed(
                            candidate,
                            f"returned {descriptor!r} from themis_{family}, not a {kind.__name__}.",
                        )
                    if descriptor.name == candidate.name:
                        provided[family] = descriptor
        if not provided:
            raise _failed(candidate, "returns no descriptor of that name from any hook.")
        return provided


def make(descriptor: Descriptor, *arguments: Any) -> Any:
    """Import a descriptor's factory and call it. Raises `PluginFailed`, or its `ThemisError`."""
    module_name, _, attribute = descriptor.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
        return factory(*arguments)
    except ThemisError:
        raise
    # Foreign code, `sys.exit` included: whatever it raises is this plugin's failure.
    except (Exception, SystemExit) as error:
        raise PluginFailed(
            f"Plugin {descriptor.name!r} failed in {descriptor.factory}: {error!r}.",
            plugin=descriptor.name,
            remedy=_import_remedy(error),
        ) from error


def _import(candidate: Candidate) -> types.ModuleType:
    try:
        return importlib.import_module(candidate.module)
    # Foreign code, `sys.exit` included: whatever it raises is this plugin's failure.
    except (Exception, SystemExit) as error:
        raise _failed(
            candidate, f"cannot be imported: {error!r}.", _import_remedy(error)
        ) from error


def _failed(candidate: Candidate, what: str, remedy: str | None = None) -> PluginFailed:
    return PluginFailed(
        f"Plugin {candidate.name!r} of {candidate.distribution} {candidate.version} {what}",
        plugin=candidate.name,
        remedy=remedy or "Update or uninstall that distribution.",
    )


def _import_remedy(error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"Install what provides the module {error.name!r}."
    return None


def _check_version(candidate: Candidate) -> None:
    version = metadata.version(CORE_DISTRIBUTION)
    if not SpecifierSet(candidate.requires_core).contains(version, prereleases=True):
        raise PluginIncompatible(
            f"Plugin {candidate} is made for themis-core {candidate.requires_core}, "
            f"but {version} is installed.",
            plugin=candidate.name,
            remedy=f"Install a version of {candidate.distribution} for themis-core {version}.",
        )

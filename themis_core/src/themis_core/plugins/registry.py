"""Loading plugins, each one guarded: a broken plugin is reported and stops no other."""

from __future__ import annotations

import logging
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import msgspec
import pluggy

from themis_core.errors import (
    PluginConflict,
    PluginLocked,
    PluginNotFound,
    ThemisError,
)
from themis_core.hooks import (
    FAMILIES,
    PROJECT,
    BackendPlugin,
    BundledModel,
    Descriptor,
    Finding,
    specs,
)
from themis_core.plugins.discovery import Candidate, discover
from themis_core.plugins.guarded import check_version, failed, import_plugin
from themis_core.plugins.lock import Guard, lock_beside, read_lock
from themis_core.suggest import did_you_mean

_log = logging.getLogger("themis.plugins")

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
    """The plugins of one runtime. Only those that are asked for by name are imported.

    With a lock, none is imported that is not as the lock says.
    """

    def __init__(
        self, candidates: Iterable[Candidate] | None = None, guard: Guard | None = None
    ) -> None:
        self._candidates: dict[str, list[Candidate]] = {}
        for candidate in discover() if candidates is None else candidates:
            self._candidates.setdefault(candidate.name, []).append(candidate)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(specs)
        self._loaded: dict[str, dict[str, Descriptor | BundledModel]] = {}
        self._failed: dict[str, ThemisError] = {}
        self._refused: dict[Candidate, ThemisError] = {}
        self._guard = guard

    @property
    def lock(self) -> str | None:
        """The lock file that is obeyed, if any."""
        return str(self._guard.path) if self._guard else None

    def obey_lock(self, path: str | Path | None) -> None:
        """Obey this lock file from now on; None changes nothing. Raises `ConfigInvalid`."""
        if path is not None and self.lock != str(path):
            self._guard = read_lock(Path(path))

    def obey_lock_beside(self, config: str | Path | None) -> None:
        """Obey the lock beside a configuration, if there is one. Raises `ConfigInvalid`."""
        self.obey_lock(lock_beside(config))

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

    def load_used(self, backend: BackendPlugin, settings: Any) -> None:
        """Load what a backend with these settings uses. Raises as `load` does."""
        try:
            names = [str(name) for name in backend.uses(settings)]
        except KeyboardInterrupt:
            raise
        # Foreign code, `sys.exit` included: whatever it raises is this plugin's failure.
        except BaseException as error:
            candidate = self._candidates[backend.name][0]
            raise failed(candidate, f"cannot say what it uses: {error!r}.") from error
        for name in names:
            self.load(name)

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

    def descriptors(self, name: str) -> dict[str, Descriptor | BundledModel]:
        """All that a plugin provides, by family, loading it if need be. Raises as `load` does."""
        self.load(name)
        return dict(self._loaded[name])

    def diagnose(
        self, name: str, backend: str | None = None, settings: Any = None
    ) -> list[Finding]:
        """What a plugin says of itself, or of one model of its backend.

        May load native libraries: to be called in a child process. Raises `PluginFailed`.
        """
        self.load(name)
        candidate = self._candidates[name][0]
        others = {m for m in self._manager.get_plugins() if m.__name__ != candidate.module}
        hooks = self._manager.subset_hook_caller
        try:
            if backend is None:
                answers = hooks("themis_diagnose", others)()
            else:
                hook = hooks("themis_diagnose_model", others)
                answers = hook(backend=backend, settings=settings)
            return [msgspec.convert(f, Finding) for answer in answers for f in answer]
        except KeyboardInterrupt:
            raise
        # Foreign code, `sys.exit` included: whatever it raises is this plugin's failure.
        except BaseException as error:
            raise failed(candidate, f"cannot diagnose itself: {error!r}.") from error

    def report(self) -> list[PluginStatus]:
        """Every candidate: loaded, failed (and why), or not selected."""
        return [self._status(c) for found in self._candidates.values() for c in found]

    def _status(self, candidate: Candidate) -> PluginStatus:
        refused = self._refused.get(candidate)
        error = refused or self._failed.get(candidate.name)
        loaded = None if refused else self._loaded.get(candidate.name)
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
        check_version(candidate)
        if self._guard is not None:
            self._guard.check(candidate)
        module = import_plugin(candidate)
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
            if not isinstance(error, KeyboardInterrupt | ThemisError):
                raise failed(candidate, f"cannot be registered: {error!r}.") from error
            raise

    def _only_candidate(self, name: str) -> Candidate:
        found = self._listed(self._candidates.get(name, []))
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

    def _listed(self, found: list[Candidate]) -> list[Candidate]:
        """Where several offer one name, those that the lock does not list are out of the way."""
        if self._guard is None or len(found) < 2:
            return found
        listed = [candidate for candidate in found if self._guard.allows(candidate)]
        for candidate in found if listed else []:
            if candidate not in listed:
                try:
                    self._guard.check(candidate)
                except PluginLocked as error:
                    self._refused[candidate] = error
                    _log.warning("%s", error)
        return listed or found

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
                        raise failed(
                            candidate,
                            f"returned {descriptor!r} from themis_{family}, not a {kind.__name__}.",
                        )
                    if descriptor.name == candidate.name:
                        provided[family] = descriptor
        if not provided:
            raise failed(candidate, "returns no descriptor of that name from any hook.")
        return provided

"""Plugins are found from metadata, loaded by name, and cannot break one another."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from themis_core.errors import PluginConflict, PluginFailed, PluginIncompatible, PluginNotFound
from themis_core.hooks import BackendPlugin, FrontDoorPlugin
from themis_core.plugins import make

SABOTAGE = {
    "raises": ("raise RuntimeError('boom')", "boom"),
    "exits": ("import sys; sys.exit(3)", "SystemExit"),
    "syntax": ("def broken(:", "SyntaxError"),
    "missing": ("import a_module_that_is_not_there", "a_module_that_is_not_there"),
    "hookraises": (
        "from themis_core.hooks import hookimpl\n@hookimpl\ndef themis_backends(): 1/0",
        "ZeroDivisionError",
    ),
    "wrongargs": (
        "from themis_core.hooks import hookimpl\n@hookimpl\ndef themis_backends(nonsense): pass",
        "nonsense",
    ),
    "unknownhook": (
        "from themis_core.hooks import hookimpl\n@hookimpl\ndef themis_bakends(): return []",
        "themis_bakends",
    ),
    "nothing": ("", "no descriptor of that name"),
    "wrongtype": (
        "from themis_core.hooks import hookimpl\n@hookimpl\ndef themis_backends(): return ['x']",
        "not a BackendPlugin",
    ),
}


def test_nothing_is_imported_before_it_is_named(shelf: Any) -> None:
    one, two = shelf.install("one"), shelf.install("two")
    registry = shelf.registry()
    assert registry.names == ["one", "two"]
    registry.load("one")
    assert one in sys.modules
    assert two not in sys.modules
    assert {s.name: s.state for s in registry.report()} == {"one": "loaded", "two": "not selected"}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_broken_plugin_is_named_with_its_cause_and_stops_no_other(shelf: Any, name: str) -> None:
    source, cause = SABOTAGE[name]
    shelf.install(name, source)
    shelf.install("good")
    registry = shelf.registry()
    registry.load_all()
    report = {s.name: s for s in registry.report()}
    assert report["good"].state == "loaded"
    assert report["good"].provides == ("backends:good",)
    assert report[name].state == "failed"
    assert report[name].code == "plugin_failed"
    assert cause in (report[name].reason or "")
    assert f"dist-{name} 1.5" in (report[name].reason or "")
    with pytest.raises(PluginFailed):
        registry.find("backends", name, BackendPlugin)
    assert registry.find("backends", "good", BackendPlugin).name == "good"


def test_a_clash_names_both_distributions(shelf: Any) -> None:
    shelf.install("same", distribution="alpha")
    shelf.install("same", distribution="beta")
    with pytest.raises(PluginConflict, match=r"alpha 1.5 and beta 1.5"):
        shelf.registry().load("same")


def test_a_plugin_for_another_api_is_refused_before_import(shelf: Any) -> None:
    module = shelf.install("future", requires="themis-core>=99")
    with pytest.raises(PluginIncompatible, match=r"themis-core >=99"):
        shelf.registry().load("future")
    assert module not in sys.modules


def test_an_unknown_name_suggests_the_near_one(shelf: Any) -> None:
    shelf.install("llamacpp")
    with pytest.raises(PluginNotFound, match="Did you mean 'llamacpp'"):
        shelf.registry().load("lamacpp")


def test_the_wrong_family_is_said(shelf: Any) -> None:
    shelf.install("one")
    with pytest.raises(PluginNotFound, match="offers backends"):
        shelf.registry().find("front_doors", "one", FrontDoorPlugin)


def test_one_module_may_provide_several_names(shelf: Any) -> None:
    source = """
from themis_core.hooks import BackendPlugin, hookimpl
@hookimpl
def themis_backends():
    return [BackendPlugin(name=n, help="", factory="x:y") for n in ("left", "right")]
"""
    module = shelf.install("left", source, distribution="both")
    entry_points = shelf.folder / "both-1.5.dist-info" / "entry_points.txt"
    entry_points.write_text(f"[themis]\nleft = {module}\nright = {module}\n")
    registry = shelf.registry()
    assert registry.find("backends", "left", BackendPlugin).name == "left"
    assert registry.find("backends", "right", BackendPlugin).name == "right"


@pytest.mark.parametrize(
    ("factory", "cause"),
    [
        ("no_such_module_here:create", "no_such_module_here"),
        ("math:no_such_function", "no_such_function"),
        ("sys:exit", "SystemExit"),
    ],
)
def test_a_failing_factory_is_a_plugin_failure(factory: str, cause: str) -> None:
    descriptor = BackendPlugin(name="mine", help="", factory=factory)
    with pytest.raises(PluginFailed, match=cause):
        make(descriptor)


USER = """
from themis_core.hooks import BackendPlugin, hookimpl

def create(settings): return None

@hookimpl
def themis_backends():
    return [BackendPlugin(name="{name}", help="", factory="{module}:create",
                          uses=lambda settings: %s)]
"""


def test_what_a_backend_uses_is_loaded_with_it(shelf: Any) -> None:
    shelf.install("user", USER % "['used']")
    used = shelf.install("used")
    registry = shelf.registry()
    backend = registry.find("backends", "user", BackendPlugin)
    assert used not in sys.modules
    registry.load_used(backend, None)
    assert used in sys.modules


def test_a_backend_that_uses_what_is_absent_names_it(shelf: Any) -> None:
    shelf.install("user", USER % "['used']")
    registry = shelf.registry()
    with pytest.raises(PluginNotFound, match="'used'"):
        registry.load_used(registry.find("backends", "user", BackendPlugin), None)


@pytest.mark.parametrize("broken", ["1 / 0", "None", "__import__('sys').exit(3)"])
def test_a_backend_that_cannot_say_what_it_uses_is_named(shelf: Any, broken: str) -> None:
    shelf.install("user", USER % broken)
    registry = shelf.registry()
    with pytest.raises(PluginFailed, match=r"dist-user 1\.5 cannot say what it uses"):
        registry.load_used(registry.find("backends", "user", BackendPlugin), None)

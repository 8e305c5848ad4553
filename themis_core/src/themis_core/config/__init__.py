"""`themis.toml` and the environment, checked against what the core and the plugins declare."""

from themis_core.config.assemble import (
    Config,
    ModelConfig,
    PluginConfig,
    ServerConfig,
    load,
    server_config,
)
from themis_core.config.problems import Place, Problem
from themis_core.config.references import resolved
from themis_core.config.settings import WorkerOptions
from themis_core.config.show import Entry, effective

__all__ = [
    "Config",
    "Entry",
    "ModelConfig",
    "Place",
    "PluginConfig",
    "Problem",
    "ServerConfig",
    "WorkerOptions",
    "effective",
    "load",
    "resolved",
    "server_config",
]

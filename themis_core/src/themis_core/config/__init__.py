"""`themis.toml` and the environment, checked against what the core and the plugins declare."""

from themis_core.config.assemble import (
    Config,
    ModelConfig,
    PluginConfig,
    ServerConfig,
    load,
    server_config,
)
from themis_core.config.problems import Problem
from themis_core.config.settings import WorkerOptions
from themis_core.config.show import Entry, effective

__all__ = [
    "Config",
    "Entry",
    "ModelConfig",
    "PluginConfig",
    "Problem",
    "ServerConfig",
    "WorkerOptions",
    "effective",
    "load",
    "server_config",
]

"""The configuration: one TOML file or mapping, checked as a whole and typed."""

from plugq.config.load import FILE_NAME, ConfigLike, find_file, find_problems, load_config
from plugq.config.model import (
    BrokerConfig,
    ClientConfig,
    Config,
    PluginChoice,
    PluginsConfig,
    QueueConfig,
    ReconnectConfig,
    ScheduleConfig,
    WorkerConfig,
)

__all__ = [
    "FILE_NAME",
    "BrokerConfig",
    "ClientConfig",
    "Config",
    "ConfigLike",
    "PluginChoice",
    "PluginsConfig",
    "QueueConfig",
    "ReconnectConfig",
    "ScheduleConfig",
    "WorkerConfig",
    "find_file",
    "find_problems",
    "load_config",
]

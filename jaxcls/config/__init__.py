"""The experiment: its schema, how it is read and compared, and what a published training takes."""

from jaxcls.config.config_file import load_config, load_sweep
from jaxcls.config.decoding import ConfigError
from jaxcls.config.encoding import SCHEMA_VERSION, changed_fields, decode, encode
from jaxcls.config.rules import check_batch, check_data, check_stages
from jaxcls.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    is_own_network,
    operational_fields,
)

__all__ = [
    "SCHEMA_VERSION",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ScheduleConfig",
    "changed_fields",
    "check_batch",
    "check_data",
    "check_stages",
    "decode",
    "encode",
    "is_own_network",
    "load_config",
    "load_sweep",
    "operational_fields",
]

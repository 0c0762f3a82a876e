"""The geometry of a checkpoint, read from either spelling of config.json; what is not implemented is refused."""

from t5g2ref.config.fields import ConfigError
from t5g2ref.config.geometry import Config, Rope, Ropes, TextConfig, VisionConfig
from t5g2ref.config.presets import PRESETS, preset

__all__ = ["PRESETS", "Config", "ConfigError", "Rope", "Ropes", "TextConfig", "VisionConfig", "preset"]

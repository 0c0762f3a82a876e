"""The geometry of a checkpoint, read from either spelling of config.json; what is not implemented is refused."""

from t5g2ref.config.fields import ConfigError
from t5g2ref.config.geometry import PRESETS, Config, Rope, Ropes, TextConfig, VisionConfig, preset

__all__ = ["PRESETS", "Config", "ConfigError", "Rope", "Ropes", "TextConfig", "VisionConfig", "preset"]

"""The geometry of a checkpoint, read from either spelling of config.json; what is not implemented is refused."""

from t5g2ref.config.fields import ConfigError
from t5g2ref.config.geometry import Config, TextConfig, VisionConfig
from t5g2ref.config.presets import PRESETS, preset
from t5g2ref.config.ropes import Dynamic, Llama3, LongRope, Proportional, Rope, Ropes, Scaling, Yarn

__all__ = [
    "PRESETS",
    "Config",
    "ConfigError",
    "Dynamic",
    "Llama3",
    "LongRope",
    "Proportional",
    "Rope",
    "Ropes",
    "Scaling",
    "TextConfig",
    "VisionConfig",
    "Yarn",
    "preset",
]

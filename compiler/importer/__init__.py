"""ONNX files in, a gs.Graph with lazy weights out."""

from .config import ModelConfig
from .load import ImportedModel, Port, load_model

__all__ = ["ImportedModel", "ModelConfig", "Port", "load_model"]

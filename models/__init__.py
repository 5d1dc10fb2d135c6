"""Decoder ONNX graphs with random weights, node for node as onnxruntime-genai's model builder writes them.

No torch, no network, seeded: `write_decoder(directory, preset("tiny-llama"))`. See README.md.
"""

from .config import DecoderConfig, DefaultRope, Family, Llama3Rope, LongRope, MaskForm, Precision
from .folder import fill_weights, write_decoder
from .presets import preset, preset_names

__all__ = [
    "DecoderConfig",
    "DefaultRope",
    "Family",
    "Llama3Rope",
    "LongRope",
    "MaskForm",
    "Precision",
    "fill_weights",
    "preset",
    "preset_names",
    "write_decoder",
]

"""Decoder ONNX graphs, node for node as onnxruntime-genai's model builder writes them.

No torch, no network. Random weights by a seed: `write_decoder(directory, preset("tiny-llama"))`; those of a
checkpoint: `write_trained(directory, config, weights)`. See README.md.
"""

from .config import DecoderConfig, DefaultRope, Family, Llama3Rope, LongRope, MaskForm, Precision
from .folder import fill_weights, write_decoder
from .presets import preset, preset_names
from .trained import write_trained

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
    "write_trained",
]

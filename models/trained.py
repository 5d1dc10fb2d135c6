"""Write a decoder with given weights: a Llama-family checkpoint's, by Hugging Face's names.

model.embed_tokens.weight                                  [vocab, hidden]
model.layers.I.self_attn.{q,k,v,o}_proj.weight             [out, in], and q, k, v .bias with qkv_bias
model.layers.I.mlp.{gate,up,down}_proj.weight              [out, in]
model.layers.I.{input,post_attention}_layernorm.weight     [hidden]
model.norm.weight                                          [hidden]
lm_head.weight                                             [vocab, hidden], unless tied
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from .config import DecoderConfig, Precision
from .decoder import build
from .folder import fill, serialized
from .quantize import quantize_blocks
from .weights import Exact, Tensor

QUANTIZED = re.compile(r"(.*)\.MatMul\.weight_(Q4|scales)")


def write_trained(
    directory: str | Path,
    config: DecoderConfig,
    weights: Mapping[str, np.ndarray],
    *,
    origin: str = "Weights of a checkpoint.",
) -> Path:
    """Write model.onnx and model.onnx.data with these weights, and return the former's path.

    int4 models are quantised to the nearest symmetric blocks (see quantize.py). The small files beside a
    model are the caller's: `companions.genai_config(config)` makes one. Raise ValueError when a weight is
    missing, unused, or of another shape than `config` says, and for asymmetric int4.
    """
    if config.precision is Precision.INT4 and not config.symmetric:
        raise ValueError("asymmetric int4 can only be written with random weights: use symmetric")
    writer = build(config)
    source = Checkpoint(config, weights)
    tensors = tuple(source.given(tensor) for tensor in writer.tensors)
    unused = sorted(set(weights) - source.used)
    if unused:
        raise ValueError(f"weights that this decoder has no place for: {', '.join(unused)}")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(serialized(writer, origin))
    fill(folder, tensors, 0, lambda done, total: None)
    return path


class Checkpoint:
    """Looks up an initializer's values; `used` collects the names that were asked for."""

    def __init__(self, config: DecoderConfig, weights: Mapping[str, np.ndarray]) -> None:
        self.config, self.weights = config, weights
        self.used: set[str] = set()
        self.quantized: tuple[str, np.ndarray, np.ndarray] = ("", np.empty(0), np.empty(0))

    def given(self, tensor: Tensor) -> Tensor:
        """The tensor with the checkpoint's values; rope caches, exact already, stay."""
        if isinstance(tensor.source, Exact):
            return tensor
        match = QUANTIZED.fullmatch(tensor.name)
        values = self.block_values(match[1], match[2], tensor) if match else self.values(tensor.name)
        if values.shape != tensor.shape:
            raise ValueError(
                f"{tensor.name} has shape {list(tensor.shape)}, the weights {list(values.shape)}"
            )
        with np.errstate(over="ignore"):
            if not np.isfinite(values.astype(tensor.dtype)).all():
                raise ValueError(f"{tensor.name} has values that {tensor.dtype} cannot hold")
        return replace(tensor, source=Exact(values))

    def block_values(self, base: str, part: str, tensor: Tensor) -> np.ndarray:
        """Codes, then scales, of one matrix: the graph lists them in this order."""
        if part == "Q4":
            dtype = np.dtype(np.float16 if self.config.io_dtype == "f16" else np.float32)
            matrix = self.values(f"{base}.MatMul.weight").T
            self.quantized = (base, *quantize_blocks(matrix, self.config.block_size, dtype))
        name, codes, scales = self.quantized
        assert name == base, f"{tensor.name} does not follow its codes"
        return codes if part == "Q4" else scales

    def values(self, name: str) -> np.ndarray:
        """The exporter's float tensor `name`; matrices of MatMul are transposed to [in, out]."""
        values = np.concatenate([self.weight(source) for source in self.sources(name)])
        return values.T if name.endswith(".MatMul.weight") else values

    def weight(self, name: str) -> np.ndarray:
        if name not in self.weights:
            raise ValueError(f"the weights lack {name}")
        self.used.add(name)
        return self.weights[name]

    def sources(self, name: str) -> list[str]:
        """Names in the checkpoint of what the exporter calls `name`."""
        if name == "model.embed_tokens.weight":
            return [name]
        if name == "lm_head.MatMul.weight":
            return ["model.embed_tokens.weight" if self.config.tied else "lm_head.weight"]
        if name == f"model.layers.{self.config.n_layers}.final_norm_layernorm.weight":
            return ["model.norm.weight"]
        base, kind = name.rsplit(".", 1)
        base = base.removesuffix(".MatMul").removesuffix(".Add").replace(".attn.", ".self_attn.")
        if base.endswith("qkv_proj"):
            return [f"{base.replace('qkv_proj', part)}.{kind}" for part in ("q_proj", "k_proj", "v_proj")]
        return [f"{base}.{kind}"]

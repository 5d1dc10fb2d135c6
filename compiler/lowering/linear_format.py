"""How the weights of a linear layer lie in GPU memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..passes.quantize import int8_chunk
from ..program import DType

CHUNK_NBYTES = 16  # bytes of one row of W that a thread takes at a time


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [begin, end) of the outputs: tensor names of their weights and of their parameters.

    `params` is one tensor of 32-bit words with, each where the `Linear` has it, and each padded to 4 bytes:
    scales [rows, blocks], zero points [rows, ceil(blocks / 2)] bytes, bias [rows]. In one tensor, because
    a stage has only eight storage buffers, and QKV with rotary embedding and KV append needs them.
    Of a gated `Linear` both tensors hold the gate's rows [begin, end), then the up projection's.
    """

    begin: int
    end: int
    weights: str
    params: str | None = None


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight matrix W [n, k] in GPU memory.

    * "q4": ONNX MatMulNBits bytes, u8 [n, blocks, block_size / 2], low nibble first; w = (q - zero) · scale,
      zero is 8 without `zero_points`; k is padded to whole blocks. Block sizes 16, 32, 64, 128, 256.
    * "f16", "f32": [n, padded_k], rows padded with zeros to 16 bytes (layouts "transpose" and "rows").

    `n` counts the outputs; of a `gated` one the matrix has 2 · n rows. `activation="int8"` (q4 only)
    multiplies in integers: x is a `quantized_tensor` with a scale per `x_block` values, 0 for a chunk.
    """

    format: str
    k: int
    n: int
    segments: tuple[Segment, ...]
    block_size: int = 0
    scale_dtype: DType = DType.F16
    zero_points: bool = False
    bias: bool = False
    bias_dtype: DType = DType.F16
    gated: bool = False
    activation: str = "f32"
    x_block: int = 0

    @property
    def chunk(self) -> int:
        """Weights of a row that a thread takes at a time, 16 bytes (8 where blocks are that short)."""
        if self.format == "q4":
            return int8_chunk(self.block_size)
        return CHUNK_NBYTES // (2 if self.format == "f16" else 4)

    @property
    def int8_block(self) -> int:
        """Int8 activations under one scale: a chunk, or a part of one."""
        return self.x_block or self.chunk

    @property
    def padded_k(self) -> int:
        unit = self.block_size if self.format == "q4" else self.chunk
        return -(-self.k // unit) * unit

    @property
    def n_chunks(self) -> int:
        """Chunks of a row that hold weights below k; what lies behind them is multiplied by nothing."""
        return -(-self.k // self.chunk)

    @property
    def n_blocks(self) -> int:
        """Blocks along k, each with a scale (0 for dense weights)."""
        return self.padded_k // self.block_size if self.format == "q4" else 0

    @property
    def matrix_rows(self) -> int:
        return self.n * (2 if self.gated else 1)


def params_words(linear: Linear, rows: int) -> tuple[int, int, int]:
    """Where the zero points and the bias begin in a segment's parameters, and their end, in words."""
    scales = -(-rows * linear.n_blocks * linear.scale_dtype.nbytes // 4)
    zeros = -(-rows * -(-linear.n_blocks // 2) // 4) if linear.zero_points else 0
    bias = -(-rows * linear.bias_dtype.nbytes // 4) if linear.bias else 0
    return scales, scales + zeros, scales + zeros + bias

"""What the attention tests share: the sequence words, running kernels in order, the append."""

from __future__ import annotations

import numpy as np
from gpu import run_kernel
from webgpu_compile.compiler.lowering.attention import Attention, Lowered, rope_append
from webgpu_compile.compiler.program import DType
from webgpu_compile.compiler.sequence import MAX_STOP_TOKENS, WORDS
from webgpu_compile.compiler.target import Target

NUMPY = {DType.F16: np.float16, DType.F32: np.float32}


def sequence(past: int, length: int = 1, call_length: int = 0, stop: int = 0) -> np.ndarray:
    words = dict.fromkeys(WORDS, 0) | {"past_length": past, "length": length, "stop": stop}
    words["total_length"] = past + length
    words["call_length"] = call_length or past + length
    return np.array([*words.values(), *[0] * (MAX_STOP_TOKENS - 1)], np.uint32)


def run(lowered: Lowered, target: Target, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run kernels one after the other over `arrays` by tensor name; scratch starts as NaN."""
    scratch = {t.name: np.full(t.shape, np.nan, np.float32) for t in lowered.tensors}
    arrays = arrays | scratch
    for kernel in lowered.kernels:
        names = {binding.variable: binding.tensor for binding in kernel.bindings}
        written = run_kernel(kernel, target, {v: arrays[tensor] for v, tensor in names.items()})
        arrays |= {names[variable]: array for variable, array in written.items()}
    return arrays


def lower_append(attention: Attention, rows: int, grid: str | None = None, separate: bool = False) -> Lowered:
    return rope_append(
        attention,
        rows,
        qkv=("q_in", "k_in", "v_in") if separate else "qkv",
        q="q",
        k_cache="k_cache",
        v_cache="v_cache",
        nodes=("/attn",),
        rope="rope" if attention.rotary_dim else None,
        grid=grid,
    )

"""What the kernels of a chunk cost: microseconds, and parts of the device's ceilings, by shape of workgroup.

    python tests/kernels/gemm_cost.py [gemm] [attention] [--model llama-3.1-8b]

The layers are those of Llama-3.2-1B. Weights come from so many copies that no cache holds them. A star marks
the shape that the compiler would choose. On a GPU all of it takes less than a minute; on a software adapter
the layers are cut down, and only the ratios of one row mean anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
import wgpu  # noqa: E402
from linear_cases import words  # noqa: E402
from webgpu_compile.compiler.emit.wgsl import render  # noqa: E402
from webgpu_compile.compiler.lowering import linear as lowering  # noqa: E402
from webgpu_compile.compiler.lowering.attention import Attention  # noqa: E402
from webgpu_compile.compiler.lowering.linear import Gated, RowsShape, TileShape  # noqa: E402
from webgpu_compile.compiler.lowering.linear_format import Linear, Segment  # noqa: E402
from webgpu_compile.compiler.lowering.prefill_attention import prefill_attention  # noqa: E402
from webgpu_compile.compiler.lowering.quantize import quantized_tensor  # noqa: E402
from webgpu_compile.compiler.program import Kernel  # noqa: E402
from webgpu_compile.compiler.target import TARGETS  # noqa: E402
from webgpu_compile.runtime.bench_ceilings import measure_ceilings  # noqa: E402
from webgpu_compile.runtime.bench_timer import Call, GpuTimer  # noqa: E402
from webgpu_compile.runtime.device import request_adapter  # noqa: E402

COLD_NBYTES = 160 << 20  # of weights before one is read again: three times the cache of an H200
DISPATCHES = 24  # of a pass
REPEATS = 4

LAYERS = {  # k, n, gated
    "llama-3.2-1b": {
        "qkv": (2048, 3072, False),
        "output": (2048, 2048, False),
        "gate, up": (2048, 8192, True),
        "down": (8192, 2048, False),
    },
    "llama-3.1-8b": {
        "qkv": (4096, 6144, False),
        "output": (4096, 4096, False),
        "gate, up": (4096, 14336, True),
        "down": (14336, 4096, False),
    },
}
ATTENTION = {
    "llama-3.2-1b": Attention(32, 8, 64, 5120),
    "llama-3.1-8b": Attention(32, 8, 128, 5120),
}
FEW = (
    RowsShape(4, 32),
    RowsShape(8, 16),
    RowsShape(2, 64),
    RowsShape(4, 16),
    RowsShape(16, 8),
    RowsShape(8, 32, batch=2),
)
TILES = (
    TileShape(64, 128),
    TileShape(64, 256),
    TileShape(32, 64),
    TileShape(32, 128),
    TileShape(16, 64),
    TileShape(128, 128),
    TileShape(128, 256),
)
ATTENTION_FORMS: tuple[tuple[int, dict[str, int]], ...] = (
    *((lanes, {}) for lanes in (1, 2, 4, 8, 16)),
    (8, {"value_unroll": 4}),
    (8, {"value_unroll": 16}),
    (8, {"tile_fours": 4}),
)
FEW_ROWS, MANY_ROWS = (2, 4, 8, 16), (16, 32, 64, 128, 512)


@dataclass(frozen=True)
class Bench:
    """A device with its timer; software adapters get little work."""

    device: Any
    timer: GpuTimer
    software: bool
    target: str

    @classmethod
    def open(cls) -> Bench:
        adapter = request_adapter()
        f16 = "shader-f16" in adapter.features
        names = ("max-storage-buffer-binding-size", "max-buffer-size")
        device = adapter.request_device_sync(
            required_features=["timestamp-query", *(["shader-f16"] if f16 else [])],
            required_limits={name: adapter.limits[name] for name in names},
        )
        software = adapter.info["adapter_type"] == "CPU"
        return cls(device, GpuTimer(device, 1), software, "f16-subgroups" if f16 else "portable")

    @cache  # noqa: B019
    def pipeline(self, wgsl: str) -> Any:
        module = self.device.create_shader_module(code=wgsl.replace("enable subgroups;\n", ""))
        return self.device.create_compute_pipeline(
            layout="auto", compute={"module": module, "entry_point": "main"}
        )

    def buffer(self, nbytes: int, data: np.ndarray | None = None) -> Any:
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_DST
        buffer = self.device.create_buffer(size=-(-nbytes // 4) * 4, usage=usage)
        if data is not None:
            self.device.queue.write_buffer(buffer, 0, data)
        return buffer

    def calls(self, kernel: Kernel, buffers: Mapping[str, tuple[Any, int]], copies: int = 1) -> list[Call]:
        """Dispatches of `kernel`; `buffers` by tensor: a buffer, and the bytes of one of its `copies`."""
        pipeline = self.pipeline(render(kernel, TARGETS[self.target]))
        layout, calls = pipeline.get_bind_group_layout(0), []
        for i in range(copies):
            entries = []
            for index, binding in enumerate(kernel.bindings):
                buffer, nbytes = buffers[binding.tensor]
                offset = i * aligned(nbytes) if buffer.size > aligned(nbytes) else 0
                resource = {"buffer": buffer, "offset": offset, "size": nbytes}
                entries.append({"binding": index, "resource": resource})
            group = self.device.create_bind_group(layout=layout, entries=entries)
            calls.append((pipeline, group, kernel.grid))
        return calls

    def microseconds(self, calls: list[Call]) -> float:
        """Of one dispatch: the best of some passes of many."""
        many = (calls * DISPATCHES)[: 2 if self.software else max(DISPATCHES, len(calls))]
        best = min(self.timer.seconds([many])[0] for _ in range(1 if self.software else REPEATS))
        return 1e6 * best / len(many)


def aligned(nbytes: int) -> int:
    return -(-nbytes // 256) * 256


def random_words(nbytes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << 32, nbytes // 4, np.uint32)


def gemms(bench: Bench, layers: Mapping[str, tuple[int, int, bool]]) -> Iterator[str]:
    """Every layer by rows and shapes."""
    ceilings = measure_ceilings(bench.device, bench.timer)
    yield f"ceilings: {ceilings.read / 1e12:.2f} TB/s, int8 {ceilings.int8 / 1e12:.1f} T operations/s"
    for name, (k, n, gated) in layers.items():
        n = n // 8 if bench.software else n
        linear = Linear("q4", k, n, (Segment(0, n, "weights", "params"),), 32, gated=gated, activation="int8")
        matrix = linear.matrix_rows
        sizes = {"weights": matrix * k // 2, "params": matrix * k // 16}
        copies = 1 if bench.software else max(1, COLD_NBYTES // sizes["weights"])
        many = {
            tensor: (bench.buffer(copies * aligned(nbytes), random_words(copies * aligned(nbytes))), nbytes)
            for tensor, nbytes in sizes.items()
        }
        for rows, shapes in [*((m, FEW) for m in FEW_ROWS), *((m, TILES) for m in MANY_ROWS)]:
            if bench.software and rows > 64:
                continue
            x_nbytes = 4 * rows * quantized_tensor("x", 1, k, 32).shape[1]
            buffers = many | {
                "x": (bench.buffer(x_nbytes, random_words(x_nbytes) & np.uint32(0x3F7F7F7F)), x_nbytes),
                "y": (bench.buffer(4 * rows * n), 4 * rows * n),
                "sequence": (bench.buffer(256, words(length=rows)), words().nbytes),
            }
            cells = []
            for shape in shapes:
                if isinstance(shape, TileShape) and shape.rows > max(16, 2 * rows):
                    continue
                epilogue = Gated("silu") if gated else None
                [kernel] = lowering.gemm(linear, "x", "y", rows, nodes=(), epilogue=epilogue, shape=shape)
                calls = bench.calls(kernel, buffers, copies)
                bench.microseconds(calls)  # compiles, and warms up
                took = bench.microseconds(calls)
                chosen = "*" if shape == lowering.gemm_shape(linear, rows) else ""
                operations = 2e6 * rows * matrix * k / took / ceilings.int8
                read = 1e6 * sum(sizes.values()) / took / ceilings.read
                cells.append(f"{label(shape)}{chosen} {took:.1f} us {read:.0%}/{operations:.0%}")
            yield f"{name} {k} x {matrix}, {rows} rows: " + " | ".join(cells)


def label(shape: RowsShape | TileShape) -> str:
    if isinstance(shape, RowsShape):
        return f"rows {shape.quads}x{shape.parts}{f' b{shape.batch}' if shape.batch != 4 else ''}"
    return f"tile {shape.rows}/{shape.threads}"


def attentions(bench: Bench, attention: Attention) -> Iterator[str]:
    """Chunks of several sizes at two depths, by lanes."""
    ceiling = measure_ceilings(bench.device, bench.timer).f32
    yield f"ceiling: f32 {ceiling / 1e12:.1f} T operations/s"
    if bench.software:
        attention = replace(attention, heads=8, kv_heads=2, capacity=1024)
    fours = (attention.heads, attention.kv_heads, attention.head_size)
    for depth in (0, 512) if bench.software else (0, 4096):
        for rows in (16, 64) if bench.software else (16, 128, 512):
            cells = []
            for lanes, changes in ATTENTION_FORMS:
                lowered = prefill_attention(
                    attention,
                    rows,
                    q="q",
                    k_cache="k_cache",
                    v_cache="v_cache",
                    out="y",
                    name="a",
                    nodes=(),
                    lanes=lanes,
                )
                cache_nbytes = 2 * fours[1] * fours[2] * attention.capacity
                nbytes = {
                    "q": 4 * rows * fours[0] * fours[2],
                    "y": 4 * rows * fours[0] * fours[2],
                    "k_cache": cache_nbytes,
                    "v_cache": cache_nbytes,
                    **{tensor.name: tensor.nbytes for tensor in lowered.tensors},
                }
                buffers = {name: (bench.buffer(size), size) for name, size in nbytes.items()}
                state = words(past_length=depth, length=rows, total_length=depth + rows)
                buffers["sequence"] = (bench.buffer(256, state), state.nbytes)
                times = []
                for kernel in lowered.kernels:
                    if kernel.name == "attention_prefill":
                        constants = dict(kernel.constants) | changes
                        kernel = replace(kernel, constants=tuple(sorted(constants.items())))
                    calls = bench.calls(kernel, buffers)
                    bench.microseconds(calls)
                    times.append(bench.microseconds(calls))
                macs = 2 * fours[0] * fours[2] * sum(depth + row + 1 for row in range(rows))
                part = 2e6 * macs / sum(times) / ceiling
                changed = "".join(f" {name} {value}" for name, value in changes.items())
                cells.append(f"{lanes} lanes{changed} {times[0]:.0f} + {times[1]:.0f} us {part:.0%}")
            yield f"attention, {rows} rows at {depth}: " + " | ".join(cells)


def main() -> None:
    arguments = sys.argv[1:]
    model = "llama-3.1-8b" if "--model" in arguments and "8b" in arguments[-1] else "llama-3.2-1b"
    bench = Bench.open()
    print(f"{bench.device.adapter_info['device']}, {model}; us, of read ceiling / of int8 ceiling")
    for name, lines in (
        ("gemm", gemms(bench, LAYERS[model])),
        ("attention", attentions(bench, ATTENTION[model])),
    ):
        if name in arguments or not {"gemm", "attention"} & set(arguments):
            for line in lines:
                print(line, flush=True)


if __name__ == "__main__":
    main()

"""The kernels of linear layers: y = x · Wᵀ + bias, one row of x (GEMV, decode) or many (GEMM, prefill).

`linear_format.py` says how W lies in memory, `linear_weights.py` makes it from initializers. A GEMV has a
workgroup per few rows of W, whose threads walk along K together; a GEMM has one per tile of x rows by 64
rows of W. What happens to a finished dot product is the `Epilogue`. A weight over the binding limit has
several segments, and each is its own dispatch over its range of outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..program import Binding, Constant, Kernel
from ..sequence import SEQUENCE
from ..shapes import GENERIC, Shapes
from ..target import SPEC_LIMITS
from .builder import fold_grid
from .linear_epilogue import (
    Argmax,
    Epilogue,
    Gated,
    Plain,
    Residual,
    RopeAppend,
    check,
    epilogue_constants,
    outputs,
)
from .linear_format import Linear, Segment, params_words
from .quantize import quantized_scales, quantized_squares, quantized_tensor

MIN_LANES = 16
THREAD_ROWS = 4  # rows of W that a thread of a GEMV takes together
FLOAT_OUTPUTS = 16  # of a gated product in f32, per workgroup
TILE_N = 64  # rows of W per workgroup of a GEMM
PART = 64  # values along K that an int8 GEMM sums up before it adds them to the rest
FLOAT_STEP = 32  # values along K in a tile of a GEMM in f32
ENOUGH_TILES = 256  # workgroups that keep a big GPU busy, about twice its cores
MOST_ROWS = 16  # rows of int8 x that a GEMM takes without tiles


@dataclass(frozen=True, slots=True)
class GemvShape:
    """How a GEMV runs, in powers of two.

    `lanes` threads walk together along K of the same four rows of W and add up what they have in workgroup
    memory, so that no subgroup size matters.
    """

    threads: int
    lanes: int

    @property
    def tile_rows(self) -> int:
        """Rows of W per workgroup."""
        return self.threads // self.lanes * THREAD_ROWS

    def __post_init__(self) -> None:
        if not MIN_LANES <= self.lanes <= self.threads:
            raise ValueError(f"{self}: a row's sums are vectors of four sums of four")


@dataclass(frozen=True, slots=True)
class RowsShape:
    """How a GEMM of a few rows runs: a thread holds four rows of W of one part of K.

    A workgroup is `quads` of those fours times `parts` parts, and sums up `batch` rows of x at a time.
    """

    quads: int
    parts: int
    batch: int = 4

    @property
    def threads(self) -> int:
        return self.quads * self.parts


@dataclass(frozen=True, slots=True)
class TileShape:
    """A tile of a GEMM: `rows` rows of x by TILE_N rows of W; a thread has 4, 8 or 16 of them by 4."""

    rows: int
    threads: int

    @property
    def row_quads(self) -> int:
        return self.rows * TILE_N // self.threads // 16


def gemv(
    linear: Linear,
    x: str,
    y: str,
    *,
    nodes: tuple[str, ...],
    epilogue: Epilogue | None = None,
    shape: GemvShape | None = None,
    shapes: Shapes = GENERIC,
    sequence: str | None = SEQUENCE,
    x_epsilon: float | None = None,
    name: str = "",
) -> list[Kernel]:
    """y [1, n] f32 from one row of x: f32 [1, k], or with int8 activations as `quantize` writes it.

    `shape` is chosen from `shapes` unless it is given. With `sequence` the kernel does nothing once
    `sequence.stop` is set. `x_epsilon`: x is what `Residual` wrote, and lacks the factor of an RMSNorm with
    this epsilon. Raises ValueError where a kernel would need more than eight storage buffers, or an epilogue
    does not fit the `Linear`.
    """
    epilogue = epilogue or Plain()
    check(linear, epilogue)
    if isinstance(epilogue, RopeAppend) and sequence is None:
        raise ValueError("appending to a KV cache needs the sequence words: they hold the position")
    int8 = linear.activation == "int8"
    shape = shape or gemv_shape(linear, epilogue, shapes)
    kernels = []
    partials_begin = 0
    for segment in linear.segments:
        n_groups = _gemv_groups(linear, segment, shape)
        grid = fold_grid(n_groups)
        constants = {
            **layer_constants(linear, segment, x_limit=linear.n_chunks * linear.chunk, x_int8=int8),
            **epilogue_constants(epilogue, linear),
            "lanes": shape.lanes,
            "tile_rows": shape.tile_rows,
            "two_scales": int8 and linear.chunk == 32,
            "rows": 1,
            "x_epsilon": x_epsilon or 0,
            "x_squares": quantized_squares(linear.k, linear.int8_block),
            "grid_x": grid[0],
            "grid_y": grid[1],
            "n_groups": n_groups,
            "y_at": f"{segment.begin}u + " if segment.begin else "",
            "partials_at": f"{partials_begin}u + " if partials_begin else "",
        }
        partials_begin += n_groups
        kernels.append(
            Kernel(
                name=name or kernel_name("gemv", linear, epilogue),
                template="linear_gemv.wgsl.j2",
                workgroup=(shape.threads, 1, 1),
                grid=grid,
                bindings=(*input_bindings(linear, segment, x, sequence), *outputs(epilogue, y)),
                constants=tuple(sorted(constants.items())),
                nodes=nodes,
                workgroup_nbytes=4 * (shape.tile_rows * (shape.lanes + 2) + 2 * shape.threads + 1),
                work=multiplications(linear, segment),
            )
        )
    return kernels


def gemm(
    linear: Linear,
    x: str,
    y: str,
    rows: int,
    *,
    nodes: tuple[str, ...],
    epilogue: Epilogue | None = None,
    sequence: str | None = SEQUENCE,
    shape: RowsShape | TileShape | None = None,
    name: str = "",
) -> list[Kernel]:
    """y [rows, n] f32 from x: f32 [rows, k], or as `quantize` writes it. Epilogues: `Plain`, `Gated`.

    With `sequence`, rows from `sequence.length` on are left unwritten, and the shader depends on `rows`
    only through its `shape`. Int8 sums are taken in one order of K whatever the shape, so that a row has
    the same bits in a chunk of any size: a prompt's logits must not depend on how it is cut.
    """
    epilogue = epilogue or Plain()
    if linear.int8_block != linear.chunk:
        raise ValueError(f"a GEMM takes int8 in blocks of {linear.chunk}, not {linear.int8_block}")
    if not isinstance(epilogue, Plain | Gated) or (isinstance(epilogue, Gated) and epilogue.y_block):
        raise ValueError(f"a GEMM has no epilogue {type(epilogue).__name__}")
    check(linear, epilogue)
    shape = shape or gemm_shape(linear, rows)
    int8 = linear.activation == "int8"
    part_chunks = PART // linear.chunk
    n_parts = -(-linear.n_chunks // part_chunks)
    if isinstance(shape, RowsShape):
        if not int8 or rows > MOST_ROWS:
            raise ValueError(f"{shape} is for at most {MOST_ROWS} rows of int8")
        kind, template, tile_n = "gemm_rows", "linear_gemm_rows.wgsl.j2", 4 * shape.quads
        sums = shape.batch * (shape.threads + shape.quads)
        workgroup_nbytes = 16 * (sums + (MOST_ROWS * shape.quads if n_parts > shape.parts else 0))
        own = {
            "quads": shape.quads,
            "parts": shape.parts,
            "n_parts": n_parts,
            "batch": shape.batch,
            "merged": min(8, shape.parts),
            "most_rows": MOST_ROWS,
        }
    else:
        kind, tile_n = "gemm", TILE_N
        template = "linear_gemm_int8.wgsl.j2" if int8 else "linear_gemm.wgsl.j2"
        # Per row or column of a tile: the int8 of a part and a scale per chunk, or 32 f32.
        workgroup_nbytes = (shape.rows + TILE_N) * (PART + 4 * part_chunks if int8 else 4 * FLOAT_STEP)
        own = {"tile_m": shape.rows, "row_quads": shape.row_quads}
    tile_outputs = tile_n // (2 if linear.gated else 1)
    kernels = []
    for segment in linear.segments:
        n = segment.end - segment.begin
        n_tiles = -(-n // tile_outputs)
        grid = fold_grid(n_tiles)
        if isinstance(shape, TileShape):
            grid = (n_tiles, -(-rows // shape.rows), 1)
        constants = {
            **layer_constants(linear, segment, x_limit=-(-linear.k // FLOAT_STEP) * FLOAT_STEP, x_int8=int8),
            **epilogue_constants(epilogue, linear),
            **own,
            "rows": rows,
            "y_stride": linear.n,
            "y_at": f"{segment.begin}u + " if segment.begin else "",
            "tile_n": tile_n,
            "tile_outputs": tile_outputs,
            "whole_tiles": n % tile_outputs == 0,
            "both_forms": _is_plain(linear, tile_outputs) and grid[0] == n_tiles,
            "act": getattr(epilogue, "act", "silu"),
            "symmetric_gemm": int8 and not linear.zero_points,
            "part_chunks": part_chunks,
            "n_steps": -(-linear.k // FLOAT_STEP),
            "n_tiles": n_tiles,
            "grid_x": grid[0],
            "grid_y": grid[1],
        }
        kernels.append(
            Kernel(
                name=name or kernel_name(kind, linear, epilogue),
                template=template,
                workgroup=(shape.threads, 1, 1),
                grid=grid,
                bindings=(*input_bindings(linear, segment, x, sequence), *outputs(epilogue, y)),
                constants=tuple(sorted(constants.items())),
                nodes=nodes,
                workgroup_nbytes=workgroup_nbytes,
                work=rows * multiplications(linear, segment),
            )
        )
    return kernels


def _is_plain(linear: Linear, tile_outputs: int) -> bool:
    """Whether an int8 GEMM has neither edges nor options: one text does for such layers, gated or not."""
    return (
        linear.activation == "int8"
        and len(linear.segments) == 1
        and linear.n % tile_outputs == 0
        and linear.k % max(PART, linear.block_size) == 0
        and not linear.zero_points
        and not linear.bias
    )


def gemm_shape(linear: Linear, rows: int) -> RowsShape | TileShape:
    """Few rows of int8 without tiles, the more parts the longer K; else tiles.

    A tile of int8 has 128 rows where enough of them remain for a big GPU, and 64 otherwise, also for fewer
    rows, so that chunks of most sizes share a shader (gemm_cost.py).
    """
    if linear.activation == "int8" and rows <= MOST_ROWS:
        n_parts = -(-linear.k // PART)
        return RowsShape(2, 64) if n_parts > 64 else RowsShape(4, 32) if n_parts > 16 else RowsShape(8, 16)
    if linear.activation == "int8":
        n_tiles = -(-linear.matrix_rows // TILE_N) * -(-rows // 128)
        return TileShape(128, 128) if n_tiles >= ENOUGH_TILES else TileShape(64, 128)
    if rows <= 16:
        return TileShape(16, 64)
    return TileShape(32, 128) if rows <= 32 else TileShape(64, 128)


def n_partials(linear: Linear, shape: GemvShape | None = None, shapes: Shapes = GENERIC) -> int:
    """How many (value, index) pairs the kernels of `gemv` with `Argmax` write, over all segments."""
    shape = shape or gemv_shape(linear, Argmax("", ""), shapes)
    return sum(_gemv_groups(linear, segment, shape) for segment in linear.segments)


def gemv_shape(linear: Linear, epilogue: Epilogue, shapes: Shapes) -> GemvShape:
    """The layout of `shapes` for what the product is for; a workgroup writes one block of int8."""
    if isinstance(epilogue, Residual):
        return _block_shape(epilogue.block, shapes.residual)
    if isinstance(epilogue, Gated):
        return _block_shape(2 * (epilogue.y_block or FLOAT_OUTPUTS), shapes.gated)
    if isinstance(epilogue, Argmax):
        # A head's partial maxima are read by one workgroup: some thousand are few enough.
        return GemvShape(shapes.head.threads, shapes.head.lanes)
    lanes = min(next((n for n in (32, 64) if n >= linear.n_chunks), 128), shapes.project.lanes)
    return GemvShape(max(lanes, shapes.project.threads), lanes)


def _block_shape(rows: int, lanes: int) -> GemvShape:
    """A workgroup for `rows` rows of W, with as many lanes as it has room for."""
    groups = rows // THREAD_ROWS
    lanes = min(lanes, SPEC_LIMITS["max-compute-invocations-per-workgroup"] // groups)
    return GemvShape(groups * lanes, lanes)


def _gemv_groups(linear: Linear, segment: Segment, shape: GemvShape) -> int:
    """Workgroups that a segment's outputs take."""
    return -(-(segment.end - segment.begin) * (2 if linear.gated else 1) // shape.tile_rows)


def layer_constants(linear: Linear, segment: Segment, x_limit: int, x_int8: bool) -> dict[str, Constant]:
    """What the templates linear_x and linear_params read. `x_limit`: x is read at columns below it."""
    rows = (segment.end - segment.begin) * (2 if linear.gated else 1)
    zeros_word, bias_word = params_words(linear, rows)[:2]
    x_scales = x_stride = 0
    if x_int8:
        x_scales = quantized_scales(linear.k, linear.int8_block)
        x_stride = quantized_tensor("", 1, linear.k, linear.int8_block).shape[1]
    return {
        "format": linear.format,
        "both_forms": False,
        "symmetric_gemm": False,
        "activation": linear.activation,
        "x_int8": x_int8,
        "k": linear.k,
        "x_limit": x_limit,
        "x_stride": x_stride,
        "x_scales": x_scales,
        "n": segment.end - segment.begin,
        "matrix_rows": rows,
        "chunk": linear.chunk,
        "x_block": linear.int8_block,
        "two_scales": False,
        "n_chunks": linear.n_chunks,
        "row_chunks": linear.padded_k // linear.chunk,
        "block_size": linear.block_size,
        "n_blocks": linear.n_blocks,
        "scale_dtype": linear.scale_dtype.value,
        "zero_points": linear.zero_points,
        "zeros_word": zeros_word,
        "bias": linear.bias,
        "bias_dtype": linear.bias_dtype.value,
        "bias_word": bias_word,
    }


def input_bindings(linear: Linear, segment: Segment, x: str, sequence: str | None) -> list[Binding]:
    bindings = [Binding("x", x), Binding("weights", segment.weights)]
    if segment.params:
        bindings.append(Binding("params", segment.params))
    return [*([Binding("sequence", sequence)] if sequence else []), *bindings]


def multiplications(linear: Linear, segment: Segment) -> int:
    """Multiply-accumulates per row of x."""
    return (segment.end - segment.begin) * (2 if linear.gated else 1) * linear.k


def kernel_name(kind: str, linear: Linear, epilogue: Epilogue) -> str:
    suffix = {
        Plain: "",
        Gated: "_gated",
        Argmax: "_argmax",
        RopeAppend: "_rope_append",
        Residual: "_residual",
    }[type(epilogue)]
    int8 = "_int8" if linear.activation == "int8" else ""
    return f"{kind}_{linear.format}{int8}{suffix}"

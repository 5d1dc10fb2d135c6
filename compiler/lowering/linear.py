"""Linear layers: y = x · Wᵀ + bias, one row of x (GEMV, decode) or many (GEMM, prefill).

A `Linear` says how the weights lie in memory; `linear_weights.py` makes it from initializers. The kernels:

* `gemv` — one row of x, one workgroup per few rows of W, all its threads walk along K together;
* `gemm` — a tile of x rows by 64 rows of W per workgroup;
* `quantize` — f32 rows to the int8 form that a `Linear` with `activation="int8"` takes.

What happens to a finished dot product is the `Epilogue`. A weight over the binding limit has several
segments, and each is its own dispatch over its range of outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..program import Access, Binding, Constant, DType, Grid, Kernel, Role, Tensor
from ..sequence import SEQUENCE
from ..target import SPEC_LIMITS
from .builder import fold_grid

TILE_N = 64  # rows of W per workgroup of a GEMM
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

    `n` counts the outputs; of a `gated` one the matrix has 2 · n rows. `activation="int8"` (q4 only) takes x
    as `quantize` writes it, and multiplies in integers.
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

    @property
    def chunk(self) -> int:
        """Weights of a row that a thread takes at a time, 16 bytes (8 where blocks are that short)."""
        if self.format == "q4":
            return min(2 * CHUNK_NBYTES, self.block_size)
        return CHUNK_NBYTES // (2 if self.format == "f16" else 4)

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


@dataclass(frozen=True, slots=True)
class Plain:
    """y [rows, n] f32, with the bias where there is one."""


@dataclass(frozen=True, slots=True)
class Gated:
    """y = act(gate) · up, f32 [rows, n], of a gated `Linear`. `act`: "silu", "gelu" (erf), "gelu_tanh"."""

    act: str


@dataclass(frozen=True, slots=True)
class Argmax:
    """y, and per workgroup its greatest entry, for the head of a language model (GEMV only).

    `partials`: u32 [n_partials(linear), 2] of (order key, index). The key grows with the value (see
    templates/order_key.wgsl.j2), NaN above all as in NumPy; of equal keys the lower index wins.
    """

    partials: str


@dataclass(frozen=True, slots=True)
class RopeAppend:
    """Packed QKV of one position: q rotated into y f32 [heads, head_size], k rotated and v into the caches.

    The position is `sequence.past_length`; at `capacity` or above nothing is appended.
    Caches: [kv_heads, capacity, head_size] f16 or f32.

    `rope`: one table [2 · table_rows, rotary_dim / 2], f16 or f32: the cosines, then the sines (layout
    "concat_rows" of the two). For LongRoPE each of the two is [short; long] with `long_row` short rows,
    and the long ones are read when `sequence.call_length` > `long_threshold`.
    """

    heads: int
    kv_heads: int
    head_size: int
    capacity: int
    k_cache: str
    v_cache: str
    cache_dtype: DType = DType.F16
    rope: str | None = None
    rotary_dim: int = 0
    table_rows: int = 0
    table_dtype: DType = DType.F16
    interleaved: bool = False
    long_threshold: int = 0
    long_row: int = 0


Epilogue = Plain | Gated | Argmax | RopeAppend


@dataclass(frozen=True, slots=True)
class GemvShape:
    """How a GEMV runs: threads per workgroup, dot products they compute together (1, 2 or 4), and how many
    such groups of rows a workgroup takes one after the other."""

    threads: int
    dots: int
    repeats: int = 1


def gemv(
    linear: Linear,
    x: str,
    y: str,
    *,
    nodes: tuple[str, ...],
    epilogue: Epilogue | None = None,
    shape: GemvShape | None = None,
    sequence: str | None = SEQUENCE,
    name: str = "",
) -> list[Kernel]:
    """y [1, n] f32 from one row of x: f32 [1, k], or as `quantize` writes it.

    With `sequence` the kernel does nothing once `sequence.stop` is set. Raises ValueError where a kernel
    would need more than eight storage buffers, or an epilogue does not fit the `Linear`.
    """
    epilogue = epilogue or Plain()
    check(linear, epilogue)
    shape = shape or gemv_shape(linear, epilogue)
    kernels = []
    partials_begin = 0
    for segment in linear.segments:
        n_groups = _gemv_groups(linear, segment, shape)
        grid = fold_grid(n_groups)
        constants = {
            **_constants(linear, segment, x_limit=linear.n_chunks * linear.chunk),
            **_epilogue_constants(epilogue),
            "dots": shape.dots,
            "repeats": shape.repeats,
            "sum_type": {1: "f32", 2: "vec2<f32>", 4: "vec4<f32>"}[shape.dots],
            "grid_x": grid[0],
            "grid_y": grid[1],
            "n_groups": n_groups,
            "y_at": f"{segment.begin}u + " if segment.begin else "",
            "partials_at": f"{partials_begin}u + " if partials_begin else "",
        }
        partials_begin += n_groups
        bindings = [*_inputs(linear, segment, x, sequence), *_outputs(epilogue, y)]
        kernels.append(
            _kernel(
                name or _name("gemv", linear, epilogue),
                "linear_gemv.wgsl.j2",
                (shape.threads, 1, 1),
                grid,
                bindings,
                constants,
                nodes,
                workgroup_nbytes=shape.threads * shape.dots * 4,
                work=(segment.end - segment.begin) * (linear.matrix_rows // linear.n) * linear.k,
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
    name: str = "",
) -> list[Kernel]:
    """y [rows, n] f32 from x: f32 [rows, k], or as `quantize` writes it. Epilogues: `Plain`, `Gated`.

    With `sequence`, rows from `sequence.length` on may be left unwritten.
    """
    epilogue = epilogue or Plain()
    if not isinstance(epilogue, Plain | Gated):
        raise ValueError(f"a GEMM has no epilogue {type(epilogue).__name__}")
    check(linear, epilogue)
    tile_m = next((size for size in (16, 32) if rows <= size), 64)
    threads = min(tile_m * 4, 128)
    int8 = linear.activation == "int8"
    k_step = 64 if int8 else 32
    tile_outputs = TILE_N // (2 if linear.gated else 1)
    kernels = []
    for segment in linear.segments:
        constants = {
            **_constants(linear, segment, x_limit=-(-linear.k // k_step) * k_step),
            **_epilogue_constants(epilogue),
            "rows": rows,
            "y_stride": linear.n,
            "y_begin": segment.begin,
            "tile_m": tile_m,
            "tile_n": TILE_N,
            "tile_outputs": tile_outputs,
            "k_step": k_step,
            "n_steps": -(-linear.k // k_step),
            "row_quads": tile_m * TILE_N // threads // 16,
        }
        n_tiles = -(-(segment.end - segment.begin) // tile_outputs)
        # Per row or column of a tile: k_step f32, or k_step int8 and a scale per chunk.
        line_nbytes = k_step + 4 * k_step // linear.chunk if int8 else 4 * k_step
        kernels.append(
            _kernel(
                name or _name("gemm", linear, epilogue),
                "linear_gemm_int8.wgsl.j2" if int8 else "linear_gemm.wgsl.j2",
                (threads, 1, 1),
                (n_tiles, -(-rows // tile_m), 1),
                [*_inputs(linear, segment, x, sequence), *_outputs(epilogue, y)],
                constants,
                nodes,
                workgroup_nbytes=(tile_m + TILE_N) * line_nbytes,
                work=rows * (segment.end - segment.begin) * (linear.matrix_rows // linear.n) * linear.k,
            )
        )
    return kernels


def n_partials(linear: Linear, shape: GemvShape | None = None) -> int:
    """How many (order key, index) pairs the kernels of `gemv` with `Argmax` write, over all segments."""
    shape = shape or gemv_shape(linear, Argmax(""))
    return sum(_gemv_groups(linear, segment, shape) for segment in linear.segments)


def gemv_shape(linear: Linear, epilogue: Epilogue) -> GemvShape:
    """Threads enough that each takes about two chunks of a row; fewer rows at once where n is small."""
    threads = next((t for t in (32, 64, 128) if 2 * t >= linear.n_chunks), 256)
    if isinstance(epilogue, RopeAppend):
        return GemvShape(threads, 4)
    dots = 4 if linear.matrix_rows >= 4096 else 2 if linear.matrix_rows >= 512 or linear.gated else 1
    # A head's partial maxima are read by one workgroup: some thousand are few enough.
    repeats = 16 if isinstance(epilogue, Argmax) and linear.n >= 16384 else 1
    return GemvShape(threads, dots, repeats)


def check(linear: Linear, epilogue: Epilogue) -> None:
    """Raise ValueError where there is no kernel for `linear` with `epilogue`."""
    if linear.activation == "int8" and linear.format != "q4":
        raise ValueError(f"int8 activations need 4-bit weights, not {linear.format}")
    if linear.gated != isinstance(epilogue, Gated):
        raise ValueError("the epilogue Gated goes with a gated Linear, and only with one")
    if isinstance(epilogue, RopeAppend):
        if len(linear.segments) != 1:
            raise ValueError("a QKV projection over the binding limit cannot append to the cache itself")
        if linear.n != (epilogue.heads + 2 * epilogue.kv_heads) * epilogue.head_size:
            raise ValueError("n is not (heads + 2 * kv_heads) * head_size")
        if epilogue.head_size % 4 or epilogue.rotary_dim % 4:
            raise ValueError("head size and rotary dimension must be multiples of 4: four rows go together")
        if bool(epilogue.rope) != bool(epilogue.rotary_dim):
            raise ValueError("a rotary table and a rotary dimension go together")
    n_bindings = 3 + (linear.segments[0].params is not None) + len(_outputs(epilogue, ""))
    if n_bindings > SPEC_LIMITS["max-storage-buffers-per-shader-stage"]:
        raise ValueError(f"{n_bindings} storage buffers")


def _gemv_groups(linear: Linear, segment: Segment, shape: GemvShape) -> int:
    outputs = shape.dots // 2 if linear.gated else shape.dots
    return -(-(segment.end - segment.begin) // (outputs * shape.repeats))


def _constants(linear: Linear, segment: Segment, x_limit: int) -> dict[str, Constant]:
    """What the templates linear_x and linear_params read. `x_limit`: x is read at columns below it."""
    rows = (segment.end - segment.begin) * (2 if linear.gated else 1)
    zeros_word, bias_word = params_words(linear, rows)[:2]
    x_scales = x_stride = 0
    if linear.activation == "int8":
        x_scales = linear.n_chunks * linear.chunk // 4
        x_stride = quantized_tensor("", 1, linear.k, linear.chunk).shape[1]
    return {
        "format": linear.format,
        "activation": linear.activation,
        "k": linear.k,
        "x_limit": x_limit,
        "x_stride": x_stride,
        "x_scales": x_scales,
        "n": segment.end - segment.begin,
        "matrix_rows": rows,
        "chunk": linear.chunk,
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


def params_words(linear: Linear, rows: int) -> tuple[int, int, int]:
    """Where the zero points and the bias begin in a segment's parameters, and their end, in words."""
    scales = -(-rows * linear.n_blocks * linear.scale_dtype.nbytes // 4)
    zeros = -(-rows * -(-linear.n_blocks // 2) // 4) if linear.zero_points else 0
    bias = -(-rows * linear.bias_dtype.nbytes // 4) if linear.bias else 0
    return scales, scales + zeros, scales + zeros + bias


def _epilogue_constants(epilogue: Epilogue) -> dict[str, Constant]:
    match epilogue:
        case Gated(act):
            if act not in ("silu", "gelu", "gelu_tanh"):
                raise ValueError(f"no gate activation {act!r}")
            return {"epilogue": "gated", "act": act}
        case Argmax():
            return {"epilogue": "argmax"}
        case RopeAppend():
            return {
                "epilogue": "rope",
                "heads": epilogue.heads,
                "kv_heads": epilogue.kv_heads,
                "head_size": epilogue.head_size,
                "capacity": epilogue.capacity,
                "cache_dtype": epilogue.cache_dtype.value,
                "rotary_dim": epilogue.rotary_dim,
                "half_rotary": epilogue.rotary_dim // 2,
                "interleaved": epilogue.interleaved,
                "table_rows": epilogue.table_rows,
                "table_dtype": epilogue.table_dtype.value,
                "long_threshold": epilogue.long_threshold,
                "long_row": epilogue.long_row,
            }
    return {"epilogue": "plain"}


def _inputs(linear: Linear, segment: Segment, x: str, sequence: str | None) -> list[Binding]:
    bindings = [Binding("x", x), Binding("weights", segment.weights)]
    if segment.params:
        bindings.append(Binding("params", segment.params))
    return [*([Binding("sequence", sequence)] if sequence else []), *bindings]


def _outputs(epilogue: Epilogue, y: str) -> list[Binding]:
    bindings = [Binding("y", y, Access.READ_WRITE)]
    if isinstance(epilogue, Argmax):
        bindings.append(Binding("partials", epilogue.partials, Access.READ_WRITE))
    if isinstance(epilogue, RopeAppend):
        bindings.append(Binding("k_cache", epilogue.k_cache, Access.READ_WRITE))
        bindings.append(Binding("v_cache", epilogue.v_cache, Access.READ_WRITE))
        if epilogue.rope:
            bindings.append(Binding("rope", epilogue.rope))
    return bindings


def _name(kind: str, linear: Linear, epilogue: Epilogue) -> str:
    suffix = {Plain: "", Gated: "_gated", Argmax: "_argmax", RopeAppend: "_rope_append"}[type(epilogue)]
    int8 = "_int8" if linear.activation == "int8" else ""
    return f"{kind}_{linear.format}{int8}{suffix}"


def _kernel(
    name: str,
    template: str,
    workgroup: Grid,
    grid: Grid,
    bindings: list[Binding],
    constants: dict[str, Constant],
    nodes: tuple[str, ...],
    *,
    workgroup_nbytes: int = 0,
    work: int = 0,
) -> Kernel:
    return Kernel(
        name=name,
        template=template,
        workgroup=workgroup,
        grid=grid,
        bindings=tuple(bindings),
        constants=tuple(sorted(constants.items())),
        nodes=nodes,
        workgroup_nbytes=workgroup_nbytes,
        work=work,
    )


def quantized_tensor(name: str, rows: int, k: int, block: int) -> Tensor:
    """The tensor that holds `rows` rows of int8 activations: u32 [rows, stride].

    A row: its values in words of four, then one f32 scale per `block` values (bit patterns), then padding
    to 16 bytes. Of every eight values the even ones are one word and the odd ones the next, which is how
    4-bit weights come apart. Values from k on are 0. `block` is `Linear.chunk`.
    """
    blocks = -(-k // block)
    stride = blocks * block // 4 + -(-blocks // 4) * 4
    return Tensor(name, DType.U32, (rows, stride), Role.ACTIVATION)


def quantize(
    x: str,
    y: str,
    rows: int,
    k: int,
    block: int,
    *,
    nodes: tuple[str, ...],
    sequence: str | None = SEQUENCE,
    name: str = "quantize",
) -> Kernel:
    """x f32 [rows, k] => y, a `quantized_tensor`: symmetric, scale = max|x| / 127 per `block` values."""
    blocks = -(-k // block)
    grid = fold_grid(-(-rows * blocks // 64))
    constants: dict[str, Constant] = {
        "rows": rows,
        "k": k,
        "block": block,
        "n_blocks": blocks,
        "stride": quantized_tensor("", 1, k, block).shape[1],
        "grid_x": grid[0],
    }
    bindings = [Binding("x", x), Binding("y", y, Access.READ_WRITE)]
    if sequence:
        bindings.insert(0, Binding("sequence", sequence))
    return _kernel(name, "quantize.wgsl.j2", (64, 1, 1), grid, bindings, constants, nodes)

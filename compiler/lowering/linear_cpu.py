"""The kernel of linear layers where a CPU plays the GPU (`Target.cpu`), for one row of x or many.

SwiftShader and lavapipe run the threads of a workgroup one after the other, four or eight at a time; a
barrier makes them all stop and start again, and costs more than the products between two of them. So a
thread takes four rows of W on its own, which share what it reads of x, and writes what comes out. A row of x
is a slice of the grid: reading W again is cheap there, arithmetic is what takes time. Small code matters as
much: a loop that is written out makes these compilers take seconds. docs/performance.md has the numbers.
"""

from __future__ import annotations

from ..program import Kernel
from ..sequence import SEQUENCE
from .linear import input_bindings, kernel_name, layer_constants, multiplications
from .linear_epilogue import Argmax, Epilogue, Gated, Plain, check, epilogue_constants, outputs
from .linear_format import Linear, Segment

THREADS = 16  # small workgroups spread over the cores
THREAD_ROWS = 4  # rows of W that a thread takes together
MANY_ROWS = 2  # the text is the same for all numbers of rows but one: fewer shaders to compile
MOST_PARTIALS = 1024  # (value, index) pairs of an LM head, about: one workgroup reads them all


def product(
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
    """y [rows, n] f32 from x: f32 [rows, k], or as `quantize` writes it.

    Epilogues: `Plain`, `Gated`, and for one row `Argmax`.
    With `sequence` it does nothing once `sequence.stop` is set, nor for rows from `sequence.length` on.
    """
    epilogue = epilogue or Plain()
    fits = isinstance(epilogue, Plain | Argmax) or (isinstance(epilogue, Gated) and not epilogue.y_block)
    if not fits:
        raise ValueError(f"no epilogue {type(epilogue).__name__} here")
    if isinstance(epilogue, Argmax) and rows > 1:
        raise ValueError("the arg-max is of one row")
    check(linear, epilogue)
    int8 = linear.activation == "int8"
    kernels = []
    partials_begin = 0
    for segment in linear.segments:
        thread_rows = _thread_rows(linear, epilogue)
        threads = _threads(linear, segment, thread_rows)
        constants = {
            **layer_constants(linear, segment, x_limit=linear.n_chunks * linear.chunk, x_int8=int8),
            **epilogue_constants(epilogue, linear),
            "rows": rows if isinstance(epilogue, Argmax) else MANY_ROWS,
            "thread_rows": thread_rows,
            "y_stride": linear.n,
            "y_at": f"{segment.begin}u + " if segment.begin else "",
            "partials_at": f"{partials_begin}u + " if partials_begin else "",
        }
        partials_begin += threads
        kernels.append(
            Kernel(
                name=name or kernel_name("product", linear, epilogue),
                template="linear_cpu.wgsl.j2",
                workgroup=(THREADS, 1, 1),
                grid=(-(-threads // THREADS), rows, 1),
                bindings=(*input_bindings(linear, segment, x, sequence), *outputs(epilogue, y)),
                constants=tuple(sorted(constants.items())),
                nodes=nodes,
                work=rows * multiplications(linear, segment),
            )
        )
    return kernels


def n_partials(linear: Linear) -> int:
    """How many (value, index) pairs the kernels of `product` with `Argmax` write, over all segments."""
    thread_rows = _thread_rows(linear, Argmax("", ""))
    return sum(_threads(linear, segment, thread_rows) for segment in linear.segments)


def _thread_rows(linear: Linear, epilogue: Epilogue) -> int:
    """Rows of W per thread: four, or several times four where each thread leaves a pair to be read."""
    if not isinstance(epilogue, Argmax):
        return THREAD_ROWS
    return -(-linear.n // MOST_PARTIALS // THREAD_ROWS) * THREAD_ROWS or THREAD_ROWS


def _threads(linear: Linear, segment: Segment, thread_rows: int) -> int:
    return -(-(segment.end - segment.begin) * (2 if linear.gated else 1) // thread_rows)

"""Elementwise operators: rows of a table, one template, ONNX broadcasting."""

from __future__ import annotations

from math import prod

import numpy as np

from ..program import Binding, Constant, Kernel
from .builder import Op, lower, reads, writes

THREADS = 256

FLOAT_UNARY = {
    "Abs": "abs(a)",
    "Ceil": "ceil(a)",
    "Cos": "cos(a)",
    "Erf": "erf(a)",
    "Exp": "exp(a)",
    "Floor": "floor(a)",
    "Log": "log(a)",
    "Neg": "-a",
    "Reciprocal": "1.0 / a",
    "Relu": "max(a, 0.0)",
    "Round": "round(a)",
    "Sigmoid": "1.0 / (1.0 + exp(-a))",
    "Sign": "sign(a)",
    "Sin": "sin(a)",
    "Softplus": "max(a, 0.0) + log(1.0 + exp(-abs(a)))",
    "Sqrt": "sqrt(a)",
    # Clamped: some drivers overflow to NaN inside tanh, and tanh(±15) is ±1 in f32 already.
    "Tanh": "tanh(clamp(a, -15.0, 15.0))",
}
"""f32 -> f32, `a` is the operand. round() in WGSL rounds halves to even, as ONNX Round does."""

GELU = {
    "none": "0.5 * a * (1.0 + erf(0.7071067811865476 * a))",
    "tanh": "0.5 * a * (1.0 + tanh(clamp(0.7978845608028654 * (a + 0.044715 * a * a * a), -15.0, 15.0)))",
}
"""By the attribute `approximate`."""

BINARY = {
    "Add": "a + b",
    "Sub": "a - b",
    "Mul": "a * b",
    "Div": "a / b",
}
"""Same type in and out, f32 or i32. Integer division truncates towards zero in ONNX and in WGSL."""

COMPARISON = {
    "Equal": "a == b",
    "Greater": "a > b",
    "GreaterOrEqual": "a >= b",
    "Less": "a < b",
    "LessOrEqual": "a <= b",
}
"""f32 or i32 in, bool (u32 0 or 1) out."""

LOGICAL = {"And": "a & b", "Or": "a | b", "Xor": "a ^ b"}

WGSL = {"f32": "f32", "i32": "i32", "u32": "u32"}

_NUMBERS = "float32, float16, int32 (int64 narrowed)"


@lower(*FLOAT_UNARY)
def unary(op: Op) -> list[Kernel]:
    """y = f(x), element by element."""
    integer = {"Abs": "abs(a)", "Neg": "-a", "Sign": "sign(a)", "Relu": "max(a, 0i)"}
    dtype = str(op.read(0).dtype)
    if dtype == "i32" and op.node.op in integer:
        return [elementwise(op, integer[op.node.op])]
    if dtype == "i32":
        raise op.error("has an integer operand", "cast it to float32 first")
    return [elementwise(op, FLOAT_UNARY[op.node.op])]


@lower("Gelu", limits="approximate none or tanh")
@lower("Gelu", domain="com.microsoft")
def gelu(op: Op) -> list[Kernel]:
    """y = x · Φ(x), with erf or tanh. ONNX Gelu-20; com.microsoft version 1 (erf)."""
    return [elementwise(op, GELU[op.attr("approximate", "none")])]


@lower("FastGelu", domain="com.microsoft", limits="no bias")
def fast_gelu(op: Op) -> list[Kernel]:
    """y = x · Φ(x) with tanh. com.microsoft version 1."""
    if op.value(1) is not None:
        raise op.error("has a bias", "add the bias in a node of its own")
    return [elementwise(op, GELU["tanh"])]


@lower("QuickGelu", domain="com.microsoft")
def quick_gelu(op: Op) -> list[Kernel]:
    """y = x / (1 + exp(-alpha · x)). com.microsoft version 1."""
    return [elementwise(op, f"a / (1.0 + exp(min({-float(op.attr('alpha', 1.702))!r} * a, 80.0)))")]


@lower(*BINARY, dtypes=_NUMBERS)
def binary(op: Op) -> list[Kernel]:
    """y = a ∘ b with ONNX (NumPy) broadcasting."""
    return [elementwise(op, BINARY[op.node.op])]


@lower(*COMPARISON, dtypes=_NUMBERS)
def comparison(op: Op) -> list[Kernel]:
    """y = a ∘ b as 0 or 1."""
    return [elementwise(op, f"u32({COMPARISON[op.node.op]})")]


@lower(*LOGICAL, dtypes="bool")
def logical(op: Op) -> list[Kernel]:
    """y = a ∘ b on booleans."""
    return [elementwise(op, LOGICAL[op.node.op])]


@lower("Not", dtypes="bool")
def logical_not(op: Op) -> list[Kernel]:
    """y = not a."""
    return [elementwise(op, "1u - a")]


@lower("Where", dtypes=_NUMBERS)
def where(op: Op) -> list[Kernel]:
    """y = condition ? a : b."""
    return [elementwise(op, "select(c, b, a != 0u)")]


@lower("Cast", dtypes="float32, float16, int64, int32, bool", limits="int64 is kept in 32 bits on the GPU")
def cast(op: Op) -> list[Kernel]:
    """y = x in another type. Float to integer truncates towards zero; float to bool is x != 0.

    Casts between float32 and float16 round to float16's values, as the model would see them.
    """
    source = np.dtype(op.node.inputs[0].dtype).name
    target = np.dtype(op.node.outputs[0].dtype).name
    to_half = target == "float16" and source != "float16"
    narrow = {"uint8": "clamp(i32(a), 0, 255)", "int8": "clamp(i32(a), -128, 127)"}
    if target in narrow or source in narrow:
        raise op.error(f"casts {source} to {target}", "only float, int32, int64 and bool are cast on the GPU")
    if to_half:
        return [elementwise(op, "unpack2x16float(pack2x16float(vec2<f32>(f32(a), 0.0))).x")]
    if target == "bool":
        zero = {"f32": "0.0", "i32": "0i", "u32": "0u"}[str(op.read(0).dtype)]
        return [elementwise(op, f"u32(a != {zero})")]
    return [elementwise(op, f"{op.write().dtype}(a)")]


def elementwise(op: Op, expression: str) -> Kernel:
    """One thread per element of the output; `a`, `b`, `c` in `expression` are the operands."""
    shape = op.out_shape()
    operands = [op.read(i) for i in range(len(op.node.inputs))]
    y = op.write()
    n = prod(shape)
    bindings: list[Binding] = []
    constants: dict[str, Constant] = {}
    for letter, tensor in zip("abc", operands, strict=False):
        bindings += reads(**{f"{letter}_in": tensor})
        constants[f"{letter}_type"] = str(tensor.dtype)
        constants[f"{letter}_index"] = _index(_shape_of(op, letter), shape)
    constants |= {
        "n": n,
        "operands": tuple("abc"[: len(operands)]),
        "expression": expression,
        "y_type": WGSL[str(y.dtype)],
        "shape": tuple(map(str, shape)),
    }
    return op.kernel(
        "elementwise.wgsl.j2",
        name=op.node.op.lower(),
        grid=-(-n // THREADS),
        workgroup=THREADS,
        bindings=[*bindings, *writes(y=y)],
        constants=constants,
        work=n,
    )


def _shape_of(op: Op, letter: str) -> tuple[int, ...]:
    return op.shape("abc".index(letter))


def _index(shape: tuple[int, ...], out: tuple[int, ...]) -> str:
    """The WGSL index of an operand for output element `i`, under broadcasting."""
    if prod(shape) == 1:
        return "0u"
    if shape == out[len(out) - len(shape) :] and prod(shape) == prod(out):
        return "i"
    if shape == out[len(out) - len(shape) :]:
        return f"i % {prod(shape)}u"
    terms = []
    padded = (1,) * (len(out) - len(shape)) + shape
    for axis, size in enumerate(padded):
        if size == 1:
            continue
        inner = prod(out[axis + 1 :])
        stride = prod(padded[axis + 1 :])
        coordinate = f"(i / {inner}u)" if inner > 1 else "i"
        if prod(out[:axis]) > 1:
            coordinate = f"({coordinate} % {out[axis]}u)"
        terms.append(f"{coordinate} * {stride}u" if stride > 1 else coordinate)
    return " + ".join(terms)

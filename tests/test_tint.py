"""The checker itself: what Tint must accept, and what it must not let through."""

from __future__ import annotations

import time

import pytest
from tint import check, check_all

GOOD = """enable f16;
enable subgroups;
const N = 64u;
const_assert N == 64u;
@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
var<workgroup> shared_x: array<f32, N>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) i: u32, @builtin(subgroup_size) size: u32) {
  shared_x[i] = f32(x[i].x);
  workgroupBarrier();
  let sum = subgroupAdd(shared_x[N - 1u - i]);
  y[i] = bitcast<u32>(dot4I8Packed(y[i], size)) + pack2x16float(vec2<f32>(sum, 1.0));
}
"""
STORE = "  shared_x[i] ="


def test_accepts_f16_subgroups_and_packed_dot_products() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize(
    ("wgsl", "line", "message"),
    [
        (GOOD.replace(STORE, f"  if (y[i] == 0u) {{ return; }}\n{STORE}"), 13, "uniform control flow"),
        (GOOD.replace("f32(x[i].x)", "x[i].x"), 11, "cannot assign 'f16' to 'f32'"),
        (GOOD.replace("N == 64u", "N == 65u"), 4, "const assertion failed"),
        ("fn f( {", 1, "expected ')'"),
    ],
    ids=["non-uniform barrier", "type", "const_assert", "syntax"],
)
def test_errors_name_the_line(wgsl: str, line: int, message: str) -> None:
    first = check(wgsl)[0]
    assert first.startswith(f"{line}:")
    assert message in first


def test_features_are_those_asked_for() -> None:
    assert "extension 'f16' is not allowed" in check(GOOD, features=("subgroups",))[0]
    assert "extension 'subgroups' is not allowed" in check(GOOD, features=("shader-f16",))[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("workgroup_size(64)", "workgroup_size(512)", "workgroup"),
        ("array<f32, N>", "array<f32, 4097>", "workgroup"),
        ("fn main", "fn not_compute_main", ""),
    ],
    ids=["invocations", "workgroup memory", "fine"],
)
def test_limits_are_the_specifications(old: str, new: str, message: str) -> None:
    errors = check(GOOD.replace(old, new))
    assert [message in error for error in errors] == [True] * bool(message)


def test_fifty_shaders_in_a_second() -> None:
    check(GOOD)
    start = time.perf_counter()
    assert check_all(f"{GOOD}// {i}" for i in range(50)) == [[]] * 50
    assert time.perf_counter() - start < 1

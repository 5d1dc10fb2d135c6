"""Kernels that share a file: common declarations once, numbers as overrides, the rest under new names."""

from __future__ import annotations

import pytest
import tint
from webgpu_compile.compiler.emit.modules import Entry, Module, Unit, commented, file_stem, merged
from webgpu_compile.compiler.emit.trim import reached
from webgpu_compile.compiler.emit.wgsl import finished

SCALE = """// y = f(x), {what}.
const SIZE = {size}u;
const HALF = {half}u;
const FACTOR = {factor};

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

var<workgroup> tile: array<f32, HALF>;

fn long_and_shared(i: u32, value: f32) -> f32 {{
  tile[i] = value * FACTOR;
  return tile[i] * tile[i] + tile[i] + f32(HALF);
}}

// What is done to a value.
fn f(i: u32) -> f32 {{
  return {body};
}}

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) i: u32) {{
  if (i < SIZE) {{
    y[i] = f(i);
  }}
}}
"""
SQUARE = "long_and_shared(i, x[i])"
CUBE = "long_and_shared(i, x[i]) * x[i]"


def unit(name: str, size: int, body: str = SQUARE, factor: str = "1.5", source: str = SCALE) -> Unit:
    return Unit(name, reached(source.format(what=name, size=size, half=size // 2, body=body, factor=factor)))


def module(*units: Unit) -> Module:
    ((result, members),) = merged(units)
    assert members == tuple(range(len(units)))
    text = finished(commented(result.text, {}))
    assert tint.check(text, pipelines=[(each.name, dict(each.constants)) for each in result.entries]) == []
    return result


def test_numbers_become_overrides() -> None:
    """Those that differ; the first kernel's are the default."""
    result = module(unit("a", 64), unit("b", 32), unit("c", 64, factor="2.5e-3"))
    assert "override SIZE: u32 = 64u;\noverride HALF: u32 = 32u;\noverride FACTOR: f32 = 1.5;" in result.text
    assert [each.name for each in result.entries] == ["main"] * 3
    assert [dict(each.constants) for each in result.entries] == [
        {},
        {"HALF": 16, "SIZE": 32},
        {"FACTOR": 2.5e-3},
    ]
    assert result.text.count("fn ") == 3


def test_a_kernel_by_itself_stays_as_it_is() -> None:
    source = SCALE.format(what="a", size=64, half=32, body=SQUARE, factor="1.5")
    result = module(Unit("a", reached(source)))
    assert finished(commented(result.text, {})) == source
    assert result.entries == (Entry("main"),)


def test_functions_that_differ_have_names_of_their_own() -> None:
    result = module(unit("norm", 64), unit("norm_cube", 32, CUBE))
    assert [each.name for each in result.entries] == ["norm", "norm_cube"]
    text = commented(result.text, {"norm": "// first\n", "norm_cube": "// second\n"})
    assert "fn f(i: u32)" in text
    assert "\n\nfn f_cube(i: u32)" in text
    assert text.count("// What is done to a value.") == 1
    assert "// second\n@compute @workgroup_size(64)\nfn norm_cube(" in text
    assert "y[i] = f_cube(i);" in text
    assert text.count("fn long_and_shared") == 1


@pytest.mark.parametrize(
    "line",
    [
        "fn f(i: u32) -> f32 {{\n  var other: array<f32, SIZE>;",
        "fn f(i: u32) -> f32 {{\n  const twice = SIZE * 2u;",
        "fn f(i: u32) -> f32 {{\n  var other = array<f32, SIZE>();",
        "const TWICE = SIZE * 2u;\nfn f(i: u32) -> f32 {{\n  let twice = TWICE;",
        "var<workgroup> more: array<f32, SIZE * 2u>;\nfn f(i: u32) -> f32 {{\n  more[0] = 1.0;",
    ],
)
def test_a_number_that_must_be_a_constant_stays_one(line: str) -> None:
    """Each kernel keeps its number, under a name of its own, where an override cannot be."""
    source = SCALE.replace("fn f(i: u32) -> f32 {{", line)
    result = module(unit("a", 64, source=source), unit("b", 32, source=source))
    assert "override SIZE" not in result.text
    assert "const SIZE_b = 32u;" in result.text
    assert "override HALF" in result.text


def test_parameters_and_fields_are_no_declarations() -> None:
    source = SCALE.replace("value: f32", "f: f32").replace("= value", "= f")
    result = module(unit("a", 64, source=source), unit("b", 64, CUBE, source=source))
    assert result.text.count("fn long_and_shared") == 1


def test_unlike_kernels_do_not_share() -> None:
    other = "@group(0) @binding(0) var<storage, read_write> z: u32;\n"
    other += "@compute @workgroup_size(1)\nfn main() {\n  z = 1u;\n}\n"
    found = merged([unit("a", 64), Unit("z", reached(other)), unit("b", 32)])
    assert [members for _, members in found] == [(0, 2), (1,)]


def test_files_are_named_after_what_their_kernels_have_in_common() -> None:
    assert file_stem(["gemv_q4_residual", "gemv_q4_gated"]) == "gemv_q4"
    assert file_stem(["rms_norm", "skip_rms_norm"]) == "rms_norm"

"""What the manifest says once and the runtime spells out: programs of variants that agree, or do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import webgpu_compile
from conftest import Artifacts
from decoder_cases import of
from hypothesis import given, settings
from test_plan import chain, programs
from webgpu_compile.compiler.emit.names import model_name
from webgpu_compile.compiler.emit.schedules import Schedules
from webgpu_compile.compiler.emit.shaders import ShaderSet
from webgpu_compile.compiler.plan import Plan, plan
from webgpu_compile.compiler.program import IndirectGrid, Program
from webgpu_compile.compiler.schedule import schedule
from webgpu_compile.runtime.programs import Dispatch, spell_out
from webgpu_compile.runtime.schema import VERSION, Manifest


def written(planned: Plan) -> tuple[Schedules, dict[tuple[str, str, str, int], int]]:
    """The schedules of a plan in which every step of every variant runs a shader of its own."""
    index: dict[tuple[str, str, str, int], int] = {}
    for variant, sequence in planned.variants.items():
        for each in sequence:
            for step, kernel in enumerate(each.program.kernels):
                index[variant, kernel.name, each.program.name, step] = len(index)
    return Schedules(planned, ShaderSet((), index, {}), lambda _: ([], [])), index


def assert_spelled_out(planned: Plan, schedules: Schedules, index: dict[Any, int]) -> None:
    """The runtime reads back what the plan says."""
    variants = [
        {
            "name": variant,
            "features": [],
            "limits": {},
            "launches": schedules.launches(variant),
            "programs": schedules.own(variant),
        }
        for variant in planned.variants
    ]
    document = {
        "format": "webgpu-compile",
        "version": VERSION,
        "producer": "x",
        "buffers": [],
        "shards": [],
        "model": {"name": "x", "kind": "graph", "inputs": [], "outputs": []},
        "modules": {},
        "shaders": [],
        "kernels": schedules.kernels(),
        "ranges": schedules.ranges(),
        "programs": schedules.shared(),
        "variants": variants,
    }
    manifest = msgspec.json.decode(msgspec.json.encode(document), type=Manifest)
    for variant in spell_out(manifest):
        sequence = planned.variants[variant.name]
        assert set(variant.programs) == {each.program.name for each in sequence}
        for each in sequence:
            name = each.program.name
            steps = variant.programs[name].steps
            assert len(steps) == len(each.program.kernels)
            for number, (step, kernel) in enumerate(zip(steps, each.program.kernels, strict=True)):
                assert isinstance(step, Dispatch)
                assert step.kernel == kernel.name
                assert step.shader == index[variant.name, kernel.name, name, number]
                places = [each.places[binding.tensor] for binding in kernel.bindings]
                found = [(bound.buffer, bound.offset, bound.nbytes) for bound in step.bindings]
                assert found == [(place.buffer, place.offset, place.nbytes) for place in places]
                if isinstance(kernel.grid, IndirectGrid):
                    place = each.places[kernel.grid.tensor]
                    assert step.indirect is not None
                    assert step.indirect.buffer == place.buffer
                    assert step.indirect.offset == place.offset + kernel.grid.offset
                    assert step.indirect.nbytes == 12
                else:
                    assert step.grid == kernel.grid
                    assert step.indirect is None


def regrid(program: Program, **grids: Any) -> Program:
    kernels = (replace(kernel, grid=grids.get(kernel.name, kernel.grid)) for kernel in program.kernels)
    return replace(program, kernels=tuple(kernels))


def without_last(program: Program) -> Program:
    return replace(program, kernels=program.kernels[:-1])


@pytest.mark.parametrize(
    ("change", "own"),
    [
        (lambda program: program, False),
        (lambda program: regrid(program, k1=(7, 3, 1)), False),
        (lambda program: regrid(program, k2=IndirectGrid("a", 4)), False),
        (without_last, True),
    ],
    ids=["alike", "another grid", "a grid in memory", "other steps"],
)
def test_a_second_variant(change: Callable[[Program], Program], own: bool) -> None:
    planned = plan({"portable": [chain()], "other": [change(chain())]})
    schedules, index = written(planned)
    assert_spelled_out(planned, schedules, index)
    assert set(schedules.own("other")) == ({"run"} if own else set())
    assert len(schedules.kernels()) == (5 if own else 3)
    unused = [launch is None for launch in schedules.launches("other")]
    assert unused == ([True] * 3 + [False] * 2 if own else [False] * 3)


def test_a_program_of_one_variant() -> None:
    planned = plan({"portable": [chain()], "other": [chain(), replace(chain(), name="more")]})
    schedules, index = written(planned)
    assert_spelled_out(planned, schedules, index)
    assert (set(schedules.shared()), set(schedules.own("other"))) == ({"run"}, {"more"})


@settings(max_examples=40, deadline=None)
@given(programs(), programs())
def test_any_programs(one: Program, two: Program) -> None:
    first, second = schedule(one), replace(schedule(two), name="other")
    planned = plan({"portable": [first, second], "more": [first, replace(first, name="other")]})
    assert_spelled_out(planned, *written(planned))


def test_other_names_of_the_ports(artifacts: Artifacts, tmp_path: Path) -> None:
    """A decoder whose ids, mask and logits have other names is run under those."""
    import onnx

    source = artifacts.model(of("tiny-llama", n_layers=1))
    model = onnx.load(source, load_external_data=False)
    names = {"input_ids": "tokens in", "attention_mask": "the mask", "logits": "scores"}
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    folder = tmp_path / "renamed"
    folder.mkdir()
    for path in source.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    onnx.save(model, folder / "model.onnx")
    rename_config(folder / "genai_config.json", names)
    options: dict[str, Any] = {"max_length": 32, "prefill_chunks": (4,), "variants": ("portable",)}
    webgpu_compile.compile(folder, tmp_path / "out", **options)
    plain = artifacts.compile(of("tiny-llama", n_layers=1), **options)
    with webgpu_compile.load(tmp_path / "out") as session, webgpu_compile.load(plain) as expected:
        found = session.run({"tokens in": [[1, 2, 3]], "the mask": [[1, 1, 1]]})
        assert list(found) == ["scores"]
        assert (found["scores"] == expected.run({"input_ids": [[1, 2, 3]]})["logits"]).all()
        assert list(session.generate([4], 5)) == list(expected.generate([4], 5))
        with pytest.raises(webgpu_compile.RuntimeFailure, match="'tokens in': is missing"):
            session.run({"the mask": [[1]]})
        with pytest.raises(webgpu_compile.RuntimeFailure, match="'the mask': is not all ones"):
            session.run({"tokens in": [[1]], "the mask": [[1]]})


def rename_config(path: Path, names: dict[str, str]) -> None:
    """Say in genai_config.json what the ports are called, as exporters do."""
    document = msgspec.json.decode(path.read_bytes())
    decoder = document["model"]["decoder"]
    for side in ("inputs", "outputs"):
        decoder[side] = {role: names.get(name, name) for role, name in decoder[side].items()}
    path.write_bytes(msgspec.json.encode(document))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("m/net.onnx", "net"),
        ("Llama-3.2/model.onnx", "Llama-3.2"),
        ("demo/int4/model.onnx", "demo/int4"),
        ("phi/onnx/model.onnx", "phi/onnx"),
        ("phi/cpu-int4-rtn/model.onnx", "phi/cpu-int4-rtn"),
        ("m/fp16/model.onnx", "m/fp16"),
        ("m/qwen2.5/model.onnx", "qwen2.5"),
        ("m/gpt2/model.onnx", "gpt2"),
        ("m/q4f16/model.onnx", "m/q4f16"),
    ],
)
def test_names_of_models(path: str, name: str) -> None:
    assert model_name(Path("/models") / path) == name

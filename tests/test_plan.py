"""The memory plan, on random programs, checked by the verifier and by a simulation that knows neither."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webgpu_compile.compiler.plan import BufferKind, Place, Plan, plan
from webgpu_compile.compiler.program import (
    Access,
    Binding,
    DType,
    Kernel,
    Program,
    Role,
    Source,
    Tensor,
    Weight,
)
from webgpu_compile.compiler.schedule import depth, hazards, schedule
from webgpu_compile.compiler.verify_plan import verify


def kernel(name: str, reads: list[str], writes: list[str]) -> Kernel:
    bindings = [Binding(f"r{i}", t) for i, t in enumerate(reads)]
    bindings += [Binding(f"w{i}", t, Access.READ_WRITE) for i, t in enumerate(writes)]
    return Kernel(name, "none.wgsl.j2", (1, 1, 1), (1, 1, 1), tuple(bindings), (), (name,))


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Chains with skips: every kernel reads a few earlier values and writes one or two new ones."""
    n = draw(st.integers(1, 25))
    tensors = {
        "w": Tensor("w", DType.U8, (1000,), Role.WEIGHT),
        "s": Tensor("s", DType.F32, (9,), Role.STATE),
    }
    weights = {"w": Weight(tensors["w"], "copy", (Source("w"),))}
    kernels, values = [], ["w"]
    for i in range(n):
        reads = draw(st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True))
        writes = []
        for j in range(draw(st.integers(1, 2))):
            size = draw(st.integers(1, 2000))
            tensors[f"t{i}.{j}"] = Tensor(f"t{i}.{j}", DType.F32, (size,), Role.ACTIVATION)
            writes.append(f"t{i}.{j}")
        if draw(st.booleans()):
            writes.append("s")
        kernels.append(kernel(f"k{i}", reads, writes))
        values += [t for t in writes if t != "s"]
    return Program("run", 0, tuple(kernels), tensors, weights)


def simulate(planned: Plan) -> None:
    """Replay with bytes: a step writes its name over its outputs; every read must find its writer's name."""
    for sequence in planned.variants.values():
        for each in sequence:
            memory = {i: [""] * buffer.nbytes for i, buffer in enumerate(planned.buffers)}
            writer = {}
            for k in each.program.kernels:
                for b in k.bindings:
                    place = each.places[b.tensor]
                    held = memory[place.buffer][place.offset : place.offset + place.nbytes]
                    if b.access is Access.READ and b.tensor in writer:
                        assert held == [writer[b.tensor]] * place.nbytes, f"{k.name} reads {b.tensor}"
                for b in k.bindings:
                    if b.access is Access.READ_WRITE:
                        place = each.places[b.tensor]
                        writer[b.tensor] = f"{k.name}:{b.tensor}"
                        memory[place.buffer][place.offset : place.offset + place.nbytes] = [
                            writer[b.tensor]
                        ] * place.nbytes


@settings(max_examples=60, deadline=None)
@given(programs(), programs())
def test_no_two_live_values_share_bytes(one: Program, two: Program) -> None:
    planned = plan({"portable": [schedule(one), replace(schedule(two), name="other")]})
    verify(planned)
    simulate(planned)


@settings(max_examples=40, deadline=None)
@given(programs())
def test_schedule_keeps_every_hazard(program: Program) -> None:
    ordered = schedule(program)
    position = {k.name: i for i, k in enumerate(ordered.kernels)}
    for a, b in hazards(program.kernels).edges:
        assert position[program.kernels[a].name] < position[program.kernels[b].name]
    assert 1 <= depth(program) <= len(program.kernels)


def chain() -> Program:
    tensors = {name: Tensor(name, DType.F32, (64,), Role.ACTIVATION) for name in "abc"}
    tensors["w"] = Tensor("w", DType.F32, (64,), Role.WEIGHT)
    kernels = (kernel("k0", ["w"], ["a"]), kernel("k1", ["a"], ["b"]), kernel("k2", ["a", "b"], ["c"]))
    return Program("run", 0, kernels, tensors, {"w": Weight(tensors["w"], "copy", (Source("w"),))})


def broken(planned: Plan, **places: Place) -> Plan:
    each = planned.variants["portable"][0]
    return replace(planned, variants={"portable": (replace(each, places={**each.places, **places}),)})


def test_the_verifier_finds_each_kind_of_damage() -> None:
    planned = plan({"portable": [chain()]})
    verify(planned)
    places = planned.variants["portable"][0].places
    with pytest.raises(AssertionError, match="both read and written"):
        verify(broken(planned, b=places["a"]))
    with pytest.raises(AssertionError, match="at offset"):
        verify(broken(planned, a=replace(places["a"], offset=4)))
    with pytest.raises(AssertionError, match="past"):
        verify(broken(planned, a=replace(places["a"], nbytes=1 << 20)))
    with pytest.raises(AssertionError, match="bound too short"):
        verify(broken(planned, a=replace(places["a"], nbytes=16)))
    weights = next(i for i, b in enumerate(planned.buffers) if b.kind is BufferKind.WEIGHTS)
    with pytest.raises(AssertionError, match="writes to weights"):
        verify(broken(planned, c=replace(places["c"], buffer=weights)))


def test_the_verifier_finds_an_overwritten_value() -> None:
    program = chain()
    kernels = (kernel("k0", ["w"], ["a"]), kernel("k1", ["w"], ["b"]), kernel("k2", ["a"], ["c"]))
    planned = plan({"portable": [replace(program, kernels=kernels)]})
    verify(planned)
    places = planned.variants["portable"][0].places
    with pytest.raises(AssertionError, match=r"a is read from activations.*, which holds b"):
        verify(broken(planned, b=places["a"]))


def test_grids_workgroups_and_bindings_are_held_to_the_limits() -> None:
    program = chain()
    for change, message in (
        ({"grid": (65536, 1, 1)}, "grid"),
        ({"workgroup": (257, 1, 1)}, "workgroup"),
        ({"workgroup": (16, 32, 1)}, "workgroup"),
        ({"workgroup_nbytes": 16385}, "workgroup memory"),
    ):
        kernels = (replace(program.kernels[0], **change), *program.kernels[1:])
        with pytest.raises(AssertionError, match=message):
            verify(plan({"portable": [replace(program, kernels=kernels)]}))


def test_a_shard_never_grows_over_the_buffer_limit() -> None:
    big = 100 << 20
    tensors = {f"w{i}": Tensor(f"w{i}", DType.U8, (big,), Role.WEIGHT) for i in range(5)}
    tensors["y"] = Tensor("y", DType.F32, (1,), Role.ACTIVATION)
    weights = {n: Weight(t, "copy", (Source(n),)) for n, t in tensors.items() if t.role is Role.WEIGHT}
    program = Program("run", 0, (kernel("k", list(weights), ["y"]),), tensors, weights)
    planned = plan({"portable": [program]})
    assert [len(shard) for shard in planned.shards] == [2, 2, 1]
    verify(planned)

"""What the passes and the verifier refuse, and with which sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from webgpu_compile.compiler.errors import CompileError
from webgpu_compile.compiler.importer import ModelConfig
from webgpu_compile.compiler.passes.int64 import narrow_int64
from webgpu_compile.compiler.passes.placement import insert_memcpy
from webgpu_compile.compiler.passes.prune import select_last_token
from webgpu_compile.compiler.passes.runner import Group, PassError, Runner
from webgpu_compile.compiler.passes.sequence_length import check_mask_is_gone, sequence_length_to_gpu
from webgpu_compile.compiler.passes.shapes import concrete_shapes
from webgpu_compile.compiler.passes.verify import verify

from .conftest import load_text

GQA = "com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1>"
PORTS = (
    "float[1, sequence_length, 32] qkv, float[1, 1, past_sequence_length, 8] past_k, "
    "float[1, 1, past_sequence_length, 8] past_v"
)
RESULTS = (
    "float[1, sequence_length, 16] y, float[1, 1, total_sequence_length, 8] present_k, "
    "float[1, 1, total_sequence_length, 8] present_v"
)


def attention(lengths: str) -> str:
    """A decoder's attention whose inputs 5 and 6 are computed by `lengths` as `seq` and `total`."""
    return (
        f"g (int64[1, total_sequence_length] attention_mask, {PORTS}) => ({RESULTS}) {{ {lengths} "
        f"y, present_k, present_v = {GQA} (qkv, , , past_k, past_v, seq, total) }}"
    )


SUM = "one = Constant <value_ints = [1]> () sum = ReduceSum <keepdims = 0> (attention_mask, one) "


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        pytest.param(
            SUM + "seq = Cast <to = 6> (sum) total = Cast <to = 6> (sum)",
            "input 5 (seqlens_k) should be total_sequence_length - 1, but is total_sequence_length",
            id="seqlens is the total",
        ),
        pytest.param(
            SUM + "less = Sub (sum, one) seq = Cast <to = 6> (less) more = Add (sum, one) "
            "total = Cast <to = 6> (more)",
            "should be total_sequence_length, but is total_sequence_length + 1",
            id="total is one more",
        ),
        pytest.param(
            "zero = Constant <value_ints = [0]> () sum = ReduceSum <keepdims = 0> (attention_mask, zero) "
            "seq = Cast <to = 6> (sum) total = Cast <to = 6> (sum)",
            "input 5 (seqlens_k) should be total_sequence_length - 1, but is not known",
            id="the sum over the batch is another thing",
        ),
        pytest.param(
            SUM + "less = Sub (sum, one) seq = Cast <to = 6> (less) shape = Shape (qkv) "
            "width = Gather <axis = 0> (shape, one) total = Cast <to = 6> (width)",
            "input 6 (total_sequence_length) should be total_sequence_length, but is sequence_length",
            id="new tokens are not all tokens",
        ),
    ],
)
def test_wrong_lengths(lengths: str, message: str, tmp_path: Path) -> None:
    graph = load_text(attention(lengths), tmp_path)
    with pytest.raises(CompileError, match="GroupQueryAttention node y") as caught:
        sequence_length_to_gpu(graph, ModelConfig())
    assert message in str(caught.value)


def test_mask_with_another_reader(tmp_path: Path) -> None:
    text = attention(SUM + "less = Sub (sum, one) seq = Cast <to = 6> (less) total = Cast <to = 6> (sum)")
    text = text.replace("present_v)", "present_v, int64[1, total_sequence_length] other)", 1)
    graph = load_text(text.replace("seq, total)", "seq, total) other = Neg (attention_mask)"), tmp_path)
    Runner().run(graph, Group("length", (lambda graph: sequence_length_to_gpu(graph, ModelConfig()),)))
    with pytest.raises(CompileError, match="Neg node other: it reads attention_mask"):
        check_mask_is_gone(graph, ModelConfig())


@pytest.mark.parametrize(
    ("text", "vocab", "message"),
    [
        pytest.param(
            "g (int64[3] input_ids) => (float[3, 4] y) <float[9, 4] table> "
            "{ a = Add (input_ids, input_ids) y = Gather <axis = 0> (table, a) }",
            None,
            "Add node a: its 64-bit result can be anything from -4294967296 to 4294967294",
            id="no vocabulary, no proof",
        ),
        pytest.param(
            "g (int64[3] input_ids) => (float[3, 4] y) <float[9, 4] table> "
            "{ a = Sub (input_ids, input_ids) y = Gather <axis = 0> (table, a) }",
            None,
            "Sub node a: its 64-bit result can be anything from -4294967295 to 4294967295",
            id="a difference is wider than its terms",
        ),
        pytest.param(
            "g (int64[3] input_ids) => (float[3, 4] y) <float[9, 4] table> "
            "{ c = Constant <value_int = 3000000000> () a = Add (input_ids, c) "
            "y = Gather <axis = 0> (table, a) }",
            8,
            "Add node a: its constant c holds 3000000000",
            id="a constant that needs 64 bits",
        ),
        pytest.param(
            "g (int64[3] input_ids, float[3, 4] x) => (int64[3] y) "
            "{ y = ArgMax <axis = 1, keepdims = 0> (x) }",
            8,
            "ArgMax node y: it computes on 64-bit integers",
            id="an operator without a 32-bit form",
        ),
        pytest.param(
            "g (float[3] x) => (int64[3] y) { y = Cast <to = 7> (x) }",
            8,
            "Cast node y: it turns floats into 64-bit integers",
            id="a float of unknown range",
        ),
    ],
)
def test_int64(text: str, vocab: int | None, message: str, tmp_path: Path) -> None:
    graph = load_text(text, tmp_path)
    with pytest.raises(CompileError) as caught:
        narrow_int64(graph, ModelConfig(vocab_size=vocab))
    assert message in str(caught.value)


def test_vocabulary_is_the_proof(tmp_path: Path) -> None:
    """With tokens below 8 the same sum fits, so the same graph is accepted."""
    text = "g (int64[3] input_ids) => (float[3, 4] y) <float[16, 4] table> "
    graph = load_text(text + "{ a = Add (input_ids, input_ids) y = Gather <axis = 0> (table, a) }", tmp_path)
    assert narrow_int64(graph, ModelConfig(vocab_size=8)) == 2
    assert graph.inputs[0].dtype == np.int32


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        pytest.param(
            "g (float[n, 4] x) => (float[n, 4] y, int64[2] s) { s = Shape (x) y = Neg (x) }",
            True,
            "Shape node s: it cannot run on the GPU: it asks for a shape, which only the host knows; bind",
            id="a host node and its copy are left",
        ),
        pytest.param(
            "g (float[4] x, int64[1] n) => (float[d] y) { y = Tile (x, n) }",
            True,
            "Tile node y: it needs n copied between GPU and host; make that operand a constant",
            id="a copy is left",
        ),
        pytest.param(
            "g (float[n, 4] x) => (float[n, 4] y, int64[2] s) { s = Shape (x) y = Neg (x) }",
            False,
            "Shape node s: it cannot run on the GPU: it asks for a shape, which only the host knows; bind",
            id="a host node is left",
        ),
        pytest.param(
            "g (bool c, float[3] x) => (float[3] y) "
            "{ y = If <then_branch = t () => (float[3] a) { a = Neg (x) }, "
            "else_branch = e () => (float[3] b) { b = Abs (x) }> (c) }",
            False,
            "If node y: it cannot run on the GPU: control flow runs on the host; only an If between two",
            id="control flow is left",
        ),
        pytest.param(
            "g (int64[3] i, float[5] x) => (float[3] y) { y = Gather (x, i) }",
            False,
            "input i: it has 64-bit integers, which WebGPU has not",
            id="a 64-bit input is left",
        ),
        pytest.param(
            "g (float[3] x) => (float[3] y) { y = Erf (x) }",
            False,
            "Erf node y: operator Erf cannot run on the GPU, no lowering is registered for it; see docs",
            id="an unknown operator",
        ),
    ],
)
def test_verifier(text: str, place: bool, message: str, tmp_path: Path) -> None:
    graph = load_text(text, tmp_path)
    if place:
        Runner().run(graph, Group("placement", (insert_memcpy,)))
    with pytest.raises(CompileError) as caught:
        verify(graph, knows=lambda node: node.op != "Erf")
    assert message in str(caught.value)


def test_verifier_permits_one_copy_on_request(tmp_path: Path) -> None:
    text = attention(SUM + "less = Sub (sum, one) seq = Cast <to = 6> (less) total = Cast <to = 6> (sum)")
    from webgpu_compile.compiler.passes.sequence_length import sequence_length_on_host

    graph = load_text(text, tmp_path)
    Runner().run(graph, Group("length", (lambda graph: sequence_length_on_host(graph, ModelConfig()),)))
    verify(graph, on_host=True)
    with pytest.raises(CompileError, match="copied between GPU and host"):
        verify(graph)


def test_unbound_dimension(tmp_path: Path) -> None:
    graph = load_text("g (float[height, 4] x) => (float[height, 4] y) { y = Neg (x) }", tmp_path)
    assert concrete_shapes(graph, {"height": 3})["y"] == (3, 4)
    with pytest.raises(CompileError, match="dimension height is unbound; use --dim height=SIZE"):
        concrete_shapes(graph, {})


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    text = "g (float[3, 4] x) => (float[3, 6] y) <float[5, 6] w> { y = MatMul (x, w) }"
    with pytest.raises(CompileError, match="MatMul node y: its inputs do not fit together"):
        load_text(text, tmp_path)


def test_last_token_needs_a_norm(tmp_path: Path) -> None:
    text = "g (float[1, 3, 4] x) => (float[1, 3, 6] logits) <float[4, 6] w> { logits = MatMul (x, w) }"
    with pytest.raises(CompileError, match="no final norm and LM head were recognised"):
        select_last_token(load_text(text, tmp_path), "logits")


def test_passes_that_never_settle(tmp_path: Path) -> None:
    graph = load_text("g (float[3] x) => (float[3] y) { y = Neg (x) }", tmp_path)

    def flip(graph: gs.Graph) -> int:
        graph.nodes[0].op = "Abs" if graph.nodes[0].op == "Neg" else "Neg"
        return 1

    with pytest.raises(
        PassError, match=r"group odd: it does not settle after 50 rounds; before it ran: flip, flip"
    ):
        Runner().run(graph, Group("odd", (flip,), fixed_point=True))


def test_a_failing_pass_names_those_before(tmp_path: Path) -> None:
    graph = load_text("g (float[3] x) => (float[3] y) { a = Identity (x) y = Neg (a) }", tmp_path)
    from webgpu_compile.compiler.passes.simplify import drop_identities

    def breaks(graph: gs.Graph) -> int:
        raise KeyError("oops")

    with pytest.raises(
        PassError, match=r"pass breaks of group g: it failed .KeyError.*before it ran: drop_identities"
    ):
        Runner().run(graph, Group("g", (drop_identities, breaks)))


def test_a_pass_that_damages_the_graph_is_caught(tmp_path: Path) -> None:
    graph = load_text("g (float[3] x) => (float[3] y) { a = Abs (x) y = Neg (a) }", tmp_path)

    def damage(graph: gs.Graph) -> int:
        graph.nodes[1].inputs[0] = gs.Variable("nowhere", np.dtype(np.float32), [3])
        return 1

    with pytest.raises(CompileError, match="Neg node y: it reads nowhere before anything writes it"):
        Runner().run(graph, Group("g", (damage,)))

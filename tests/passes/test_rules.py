"""Every rule: text before, text after, and the same answer from ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from webgpu_compile.compiler.passes.dump import to_model

from .conftest import apply, graph_text, load_text, parse, read_case, run_in_ort

CASES = sorted((Path(__file__).parent / "cases").glob("*.txt"))
BLESS = os.environ.get("WEBGPU_COMPILE_BLESS") == "1"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_rule(path: Path, tmp_path: Path) -> None:
    case = read_case(path)
    graph = load_text(case.before, tmp_path)
    changes = apply(case, graph)
    text = graph_text(graph) if changes else "unchanged"
    if BLESS:
        head = path.read_text("utf-8").partition("\n=>\n")[0]
        path.write_text(f"{head}\n=>\n{text}\n", "utf-8")
    else:
        assert text == case.after, "WEBGPU_COMPILE_BLESS=1 pytest tests/passes rewrites the expected graphs"

    before, after = run_in_ort(parse(case.before)), run_in_ort(to_model(graph))
    if "append_argmax" in case.passes:
        *after, values, indices = after
        assert (values == after[0].max(-1, keepdims=True)).all()
        assert (indices == after[0].argmax(-1, keepdims=True)).all()
    if "select_last_token" in case.passes:
        before = [rows[:, -1:] for rows in before]
    assert len(before) == len(after)
    for expected, found in zip(before, after, strict=True):
        assert expected.shape == found.shape
        np.testing.assert_allclose(
            found.astype(np.float64), expected.astype(np.float64), rtol=0, atol=case.tolerance
        )


def test_every_rule_has_a_case() -> None:
    from webgpu_compile.compiler.importer import ModelConfig
    from webgpu_compile.compiler.options import CompileOptions
    from webgpu_compile.compiler.passes.front import PLACEMENT, groups, program_group
    from webgpu_compile.compiler.passes.runner import pass_name

    shown = {name for path in CASES for name in read_case(path).passes}
    options = CompileOptions()
    every = (PLACEMENT, *groups(ModelConfig(), options), program_group("decode", options, "logits"))
    rules = {pass_name(rule) for group in every for rule in group.passes}
    assert rules - shown == {"constants_to_initializers", "check_mask_is_gone"}  # import, and test_errors.py

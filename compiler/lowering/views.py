"""Operators that only rename bytes: no kernel."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from .builder import Op, lower


@lower(
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", dtypes="any", limits="static shapes"
)
def view(op: Op) -> None:
    """The output is the input under another shape."""
    if op.node.op == "Dropout" and op.has_output(1):
        raise op.error("has its mask output in use", "export the model for inference")
    if isinstance(op.value(0), gs.Constant) and op.node.outputs[0].name in op.builder.outputs:
        raise op.error("makes a constant an output of the model", "remove that output")
    op.alias(op.read(0))

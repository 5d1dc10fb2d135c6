"""A small ONNX graph writer that keeps the exporter's order of nodes, initializers and value_info."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from .weights import Source, Tensor

DATA_FILE = "model.onnx.data"
MICROSOFT = "com.microsoft"

Shape = Sequence[int | str] | None
F16, F32 = np.dtype(np.float16), np.dtype(np.float32)
I32, I64, U8, BOOL = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.uint8), np.dtype(np.bool_)


def value_info(name: str, dtype: np.dtype, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def constant_node(
    output: str, name: str, values: np.ndarray, tensor_name: str | None = None
) -> onnx.NodeProto:
    tensor = TensorProto(
        dims=values.shape,
        data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
        name=tensor_name,
        raw_data=np.ascontiguousarray(values).tobytes(),
    )
    return helper.make_node("Constant", [], [output], name, value=tensor)


class GraphWriter:
    """Nodes in call order; quantised matrices follow all other initializers, as after quantising."""

    def __init__(self) -> None:
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._values: list[onnx.ValueInfoProto] = []
        self._float: list[Tensor] = []
        self._quantized: list[Tensor] = []
        self._constants: set[str] = set()

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        dtype: np.dtype,
        shape: Shape,
        *,
        output: str | None = None,
        domain: str = "",
        attributes: dict[str, Any] | None = None,
    ) -> str:
        """Append a node with one output, `{name}/output_0` unless named, and return the output's name."""
        result = output if output is not None else f"{name}/output_0"
        self.raw_node(op, inputs, [result], name, domain, attributes)
        self.value(result, dtype, shape)
        return result

    def raw_node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        domain: str = "",
        attributes: dict[str, Any] | None = None,
    ) -> None:
        """Append a node whose outputs the caller describes with `value`."""
        node = helper.make_node(op, inputs, outputs, name, domain=domain or None)
        for key, value in (attributes or {}).items():  # in this order; make_node would sort them
            node.attribute.append(helper.make_attribute(key, value))
        self._nodes.append(node)

    def value(self, name: str, dtype: np.dtype, shape: Shape) -> None:
        """Record dtype and shape of a value; graph outputs say theirs themselves."""
        if all(name != graph_output.name for graph_output in self.outputs):
            self._values.append(value_info(name, dtype, shape))

    def has_value(self, name: str) -> bool:
        return any(value.name == name for value in self._values)

    def constant(self, value: int | list[int], dtype: np.dtype = I64) -> str:
        """An integer constant, a node of its own at first use. The exporter declares all as scalars."""
        kind = f"{dtype.name.upper()}/{value}"
        output = f"/model/constants/{kind}"
        if kind not in self._constants:
            self._constants.add(kind)
            name = f"/model/constant_nodes/{kind}"
            self._nodes.append(constant_node(output, name, np.array(value, dtype), output))
            self._values.append(value_info(output, dtype, []))
        return output

    def weight(
        self, name: str, dtype: np.dtype, shape: tuple[int, ...], source: Source, *, quantized: bool = False
    ) -> str:
        (self._quantized if quantized else self._float).append(Tensor(name, dtype, shape, source))
        return name

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Initializers in file order; they lie end to end in the data file."""
        return (*self._float, *self._quantized)

    def model(self, origin: str = "Random weights.") -> onnx.ModelProto:
        """The model, its initializers referring to DATA_FILE beside it; `origin` starts its doc_string."""
        graph = onnx.GraphProto(name="main_graph", input=self.inputs, output=self.outputs)
        graph.node.extend(self._nodes)
        offset = 0
        for tensor in self.tensors:
            graph.initializer.append(external_tensor(tensor, offset))
            graph.value_info.append(value_info(tensor.name, tensor.dtype, tensor.shape))
            offset += tensor.nbytes
        graph.value_info.extend(self._values)
        return onnx.ModelProto(
            ir_version=10,
            producer_name="onnxruntime-genai",
            producer_version="0.18.0+00d66ef",
            doc_string=f"{origin} Written by webgpu_compile.models in the form of the named producer.",
            opset_import=[helper.make_opsetid("", 22), helper.make_opsetid(MICROSOFT, 1)],
            graph=graph,
        )


def external_tensor(tensor: Tensor, offset: int) -> onnx.TensorProto:
    proto = TensorProto(
        name=tensor.name,
        dims=tensor.shape,
        data_type=helper.np_dtype_to_tensor_dtype(tensor.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", DATA_FILE), ("offset", offset), ("length", tensor.nbytes)):
        proto.external_data.add(key=key, value=str(value))
    return proto

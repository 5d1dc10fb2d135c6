"""`run` of a model without state: upload the inputs, replay, read the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import RuntimeFailure
from .ports import Array, from_storage, to_storage
from .programs import Program
from .readback import Readback
from .resources import Resources


def run_graph(
    program: Program,
    resources: Resources,
    readback: Readback,
    inputs: Mapping[str, Any],
    names: list[str],
) -> dict[str, Array]:
    """Outputs `names` by name.

    Raises:
        RuntimeFailure: an input is missing, or has another dtype or shape than was compiled.
    """
    uploads = []
    for port in program.inputs:
        if port.name not in inputs:
            raise RuntimeFailure(f"input {port.name!r}", "is missing", "give every input of the model")
        uploads.append((port, to_storage(port, inputs[port.name])))
    for port, data in uploads:
        resources.device.queue.write_buffer(resources.buffers[port.buffer], 0, data)
    ports = {port.name: port for port in program.outputs}
    wanted = [ports[name] for name in names]
    parts = readback.run([resources.programs["run"]], [(port.buffer, 0, port.nbytes) for port in wanted])
    return {port.name: from_storage(port, data) for port, data in zip(wanted, parts, strict=True)}

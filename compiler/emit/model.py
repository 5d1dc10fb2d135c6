"""What the manifest says of the model itself: its ports, its sequence, what the passes came to."""

from __future__ import annotations

from typing import Any

from ..importer import Port as ModelPort
from ..lowering.decoder import decoder_shape
from ..options import CompileOptions
from ..passes.front import DeviceModel
from ..plan import Plan, ProgramPlan
from ..program import Tensor
from ..sequence import MAX_STOP_TOKENS, SEQUENCE, TOKENS, WORDS
from .names import model_name

Json = dict[str, Any]


def model_json(device: DeviceModel) -> Json:
    """The model as its author knows it: original names, dtypes and (symbolic) shapes."""
    interface = device.interface
    return {
        "name": model_name(device.file),
        "kind": "decoder" if interface.is_decoder else "graph",
        "inputs": [_model_port(port) for port in interface.inputs],
        "outputs": [_model_port(port) for port in interface.outputs],
    }


def sequence_json(device: DeviceModel, plan: Plan, options: CompileOptions) -> Json | None:
    """Where a decoder keeps its state; None for a model without."""
    if not device.interface.is_decoder:
        return None
    interface, config = device.interface, device.config
    shape = decoder_shape(device, options)
    inputs = {port.name for port in interface.inputs}
    ports: Json = {"ids": interface.tokens, "logits": interface.logits}
    more = {"mask": config.mask_input, "positions": config.position_input}
    ports |= {role: name for role, name in more.items() if name in inputs}
    buffers = {buffer.name: i for i, buffer in enumerate(plan.buffers)}
    return {
        "buffer": buffers[SEQUENCE],
        "tokens": buffers[TOKENS],
        "words": {word: i for i, word in enumerate(WORDS)},
        "capacity": shape.capacity,
        "vocab_size": shape.vocab_size,
        "max_stop_tokens": MAX_STOP_TOKENS,
        "stop_tokens": [t for t in config.eos_token_ids if 0 <= t < shape.vocab_size][:MAX_STOP_TOKENS],
        "driven_by": shape.driven_by,
        "all_logits": not interface.pruned,
        **ports,
    }


def ports_json(device: DeviceModel, planned: ProgramPlan) -> tuple[list[Json], list[Json]]:
    """The inputs and outputs of one program, with the buffers that hold them."""
    program = planned.program
    dtypes = {p.name: p.dtype for p in (*device.interface.inputs, *device.interface.outputs)}
    caches = (
        {cache.present: cache.past for cache in device.interface.caches} if program.name == "decode" else {}
    )
    inputs = [_port(planned, name, name, dtypes[name]) for name in program.inputs]
    outputs = [
        _port(planned, name, program.aliases.get(name, name), dtypes[name]) for name in program.outputs
    ]
    outputs += [_port(planned, present, past, dtypes[present]) for present, past in caches.items()]
    return inputs, outputs


def _port(planned: ProgramPlan, name: str, tensor_name: str, dtype: str) -> Json:
    tensor: Tensor = planned.program.tensors[tensor_name]
    place = planned.places[tensor_name]
    return {
        "name": name,
        "dtype": dtype,
        "shape": list(tensor.shape),
        "storage": str(tensor.dtype),
        "buffer": place.buffer,
        "nbytes": place.nbytes,
    }


def _model_port(port: ModelPort) -> Json:
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.shape)}


def state_nbytes(plan: Plan, kind: str) -> int:
    """Bytes of all buffers of a kind."""
    return sum(buffer.nbytes for buffer in plan.buffers if str(buffer.kind) == kind)

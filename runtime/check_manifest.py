"""The manifest's verifier: every index, range and rule of use, before anything reaches the GPU.

wgpu-native aborts the process on a validation error at submit, so what it would find there is found here.
The schema has checked types and ranges of single fields; this checks how they fit together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from msgspec.structs import astuple

from .check_steps import check_steps
from .errors import InconsistencyError, RuntimeFailure
from .limits import DEFAULTS, buffers_of, granted
from .ports import STORAGE_NBYTES
from .programs import Variant, spell_out
from .schema import Manifest, Port

ALIGNMENT = 256
DECODE = ("decode", "decode_sampled")
MIN_BLOCK_NBYTES, MAX_BLOCK_NBYTES = 4096, 64 << 20
SEQUENCE_WORDS = ("past_length", "length", "total_length", "call_length", "n_tokens")
GENERATION_WORDS = ("limit", "stop", "n_stop_tokens", "stop_tokens")


def check_manifest(manifest: Manifest) -> tuple[Variant, ...]:
    """Check a decoded manifest; returns its variants, spelled out.

    Raises:
        RuntimeFailure: naming the first thing that does not fit.
    """
    try:
        _check_names(manifest)
        _check_buffers(manifest)
        _check_shards(manifest)
        _check_ranges(manifest)
        _check_model(manifest)
        variants = spell_out(manifest)
        for variant in variants:
            _check_variant(manifest, variant)
    except InconsistencyError as error:
        raise RuntimeFailure(
            "manifest.json", f"is inconsistent: {error}", "compile the model again with webgpu-compile"
        ) from None
    return variants


def require(condition: bool, message: str) -> None:
    if not condition:
        raise InconsistencyError(message)


def _unique(what: str, names: Sequence[str]) -> None:
    require(len(set(names)) == len(names), f"two {what} have the same name")


def _check_names(manifest: Manifest) -> None:
    _unique("buffers", [buffer.name for buffer in manifest.buffers])
    # Without case: the artifact may be copied to a file system that does not tell a from A.
    _unique("shards", [shard.file.lower() for shard in manifest.shards])
    _unique("shader files", [file.lower() for file in manifest.modules])
    for shader in manifest.shaders:
        require(shader.file in manifest.modules, f"shader file {shader.file!r} has no hash")
    _unique("variants", [variant.name for variant in manifest.variants])
    _unique("inputs", [port.name for port in manifest.model.inputs])
    _unique("outputs", [port.name for port in manifest.model.outputs])


def _check_buffers(manifest: Manifest) -> None:
    for buffer in manifest.buffers:
        require(buffer.nbytes % 4 == 0, f"the size of buffer {buffer.name!r} is not a multiple of 4")


def _check_shards(manifest: Manifest) -> None:
    """Shards and weight buffers are the same bytes."""
    filled = set()
    for shard in manifest.shards:
        name = f"shard {shard.file!r}"
        require(shard.buffer < len(manifest.buffers), f"{name} has no buffer")
        buffer = manifest.buffers[shard.buffer]
        require(buffer.kind == "weights", f"{name} fills buffer {buffer.name!r}, which is not for weights")
        require(shard.buffer not in filled, f"two shards fill buffer {buffer.name!r}")
        filled.add(shard.buffer)
        require(shard.data_offset % ALIGNMENT == 0, f"the data of {name} is not aligned")
        require(
            shard.nbytes - shard.data_offset == buffer.nbytes,
            f"{name} and its buffer differ in size",
        )
        block = shard.block_nbytes
        require(
            MIN_BLOCK_NBYTES <= block <= MAX_BLOCK_NBYTES and block % 4 == 0,
            f"{name} has blocks of {block} bytes",
        )
        require(len(shard.blocks) == -(-shard.nbytes // block), f"{name} has too many or too few hashes")
    for index, buffer in enumerate(manifest.buffers):
        require(buffer.kind != "weights" or index in filled, f"no shard fills buffer {buffer.name!r}")


def _check_ranges(manifest: Manifest) -> None:
    for index, (buffer, offset, nbytes) in enumerate(map(astuple, manifest.ranges)):
        require(buffer < len(manifest.buffers), f"range {index} is in a buffer that does not exist")
        name, size = manifest.buffers[buffer].name, manifest.buffers[buffer].nbytes
        require((offset | nbytes) % 4 == 0, f"range {index} of {name!r} is not a multiple of 4")
        require(offset + nbytes <= size, f"range {index} is outside of {name!r}")


def _check_model(manifest: Manifest) -> None:
    model, sequence = manifest.model, manifest.sequence
    require(
        (model.kind == "decoder") == (sequence is not None), "a decoder has a sequence, and nothing else has"
    )
    if sequence is None:
        return
    inputs = {port.name for port in model.inputs}
    require(sequence.ids in inputs, f"the model has no input {sequence.ids!r}")
    require({sequence.mask, sequence.positions} <= inputs | {None}, "the model has no such mask or positions")
    require(
        sequence.logits in {port.name for port in model.outputs},
        f"the model has no output {sequence.logits!r}",
    )
    require(max(sequence.buffer, sequence.tokens) < len(manifest.buffers), "the sequence has no buffer")
    words, tokens = manifest.buffers[sequence.buffer], manifest.buffers[sequence.tokens]
    require(words.kind == tokens.kind == "state", "the sequence's buffers are not state")
    require(sequence.buffer != sequence.tokens, "the sequence's words and tokens share a buffer")
    require(tokens.nbytes >= 4 * (sequence.capacity + 1), "the token buffer is too small")
    needed = SEQUENCE_WORDS + (GENERATION_WORDS if sequence.driven_by == "gpu" else ())
    for name in needed:
        require(name in sequence.words, f"the sequence lacks the word {name!r}")
    taken = [index for name, index in sequence.words.items() if name != "stop_tokens"]
    if "stop_tokens" in sequence.words:
        first = sequence.words["stop_tokens"]
        end = 4 * (first + sequence.max_stop_tokens)
        require(end <= words.nbytes, "the sequence buffer is too small for its words")
        taken += range(first, first + sequence.max_stop_tokens)
    require(len(set(taken)) == len(taken), "two words of the sequence are the same")
    require(4 * (max(taken) + 1) <= words.nbytes, "the sequence buffer is too small for its words")
    require(len(sequence.stop_tokens) <= sequence.max_stop_tokens, "there are too many stop tokens")
    require(sequence.capacity < 2**31 and sequence.vocab_size < 2**31, "the sequence does not fit 32 bits")


def _check_variant(manifest: Manifest, variant: Variant) -> None:
    for name in variant.limits:
        require(name in DEFAULTS, f"variant {variant.name!r} asks for the unknown limit {name!r}")
    for program in variant.programs.values():
        _check_ports(manifest, (*program.inputs, *program.outputs))
    limits = granted(variant)
    for index in buffers_of(manifest, variant):
        buffer = manifest.buffers[index]
        require(
            buffer.nbytes <= limits["max-buffer-size"],
            f"buffer {buffer.name!r} is larger than variant {variant.name!r} asks for",
        )
    _check_programs(manifest, variant)
    for name, program in variant.programs.items():
        where = f"program {name!r} of variant {variant.name!r}"
        problem = check_steps(manifest, variant, program)
        require(problem is None, f"{where}, {problem}")


def _check_programs(manifest: Manifest, variant: Variant) -> None:
    """A decoder has `decode` and some `prefill_N`, a graph has `run`; and they have what callers read.

    A decoder that can sample also has `decode_sampled`.
    """
    programs, where = variant.programs, f"variant {variant.name!r}"
    if manifest.sequence is None:
        require(set(programs) == {"run"}, f"{where} does not have the one program 'run'")
        for ports, wanted in (
            (programs["run"].inputs, manifest.model.inputs),
            (programs["run"].outputs, manifest.model.outputs),
        ):
            names = sorted(port.name for port in ports)
            require(
                names == sorted(port.name for port in wanted), f"{where}: 'run' has not the model's ports"
            )
        return
    require("decode" in programs, f"{where} has no program 'decode'")
    kinds = {"decode": False, "prefill": False, "logits": False}
    for name, program in programs.items():
        kind, _, rows = name.partition("_")
        known = name in DECODE or (kind in ("prefill", "logits") and rows == str(program.rows))
        require(known, f"{where} has the unknown program {name!r}")
        require(program.rows == 1 if kind == "decode" else program.rows >= 1, f"{name!r} has no rows")
        kinds[kind] = True
        shape = [1, program.rows if kind == "logits" else 1, manifest.sequence.vocab_size]
        found = [port.shape for port in program.outputs if port.name == manifest.sequence.logits]
        require(found == [shape], f"{where}, {name!r} does not give logits of shape {shape}")
    require(kinds["prefill"], f"{where} has no program 'prefill_N'")
    samples = "sampling" in manifest.sequence.words
    require(samples == ("decode_sampled" in programs), f"{where}: 'decode_sampled' and the words disagree")
    require(kinds["logits"] == manifest.sequence.all_logits, f"{where}: 'logits_N' and all_logits disagree")


def _check_ports(manifest: Manifest, ports: Iterable[Port]) -> None:
    for port in ports:
        size = prod(port.shape) * STORAGE_NBYTES[port.storage]
        name = f"port {port.name!r}"
        require(size <= port.nbytes <= size + ALIGNMENT, f"the shape of {name} does not give its size")
        require(port.buffer < len(manifest.buffers), f"{name} has no buffer")
        buffer = manifest.buffers[port.buffer]
        require(port.nbytes <= buffer.nbytes, f"{name} is larger than its buffer")
        require(port.nbytes % 4 == 0, f"the size of {name} is not a multiple of 4")
        require(buffer.kind != "weights", f"{name} is in a weight buffer")

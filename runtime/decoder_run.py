"""`run` of a language model: logits for the positions given, and the KV cache on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .chunks import choose_chunks
from .errors import RuntimeFailure
from .generate import prefill_sizes
from .ports import STORAGE_NBYTES, Array, from_storage
from .programs import Variant
from .readback import Range, Readback
from .resources import Resources
from .schema import Manifest, Port
from .sequence import History, Writer, check_capacity, token_ids


class DecoderRun:
    """One call of `run` on prepared resources; it appends to the history."""

    def __init__(
        self,
        manifest: Manifest,
        variant: Variant,
        resources: Resources,
        readback: Readback,
        history: History,
        writer: Writer,
    ) -> None:
        assert manifest.sequence is not None
        self._state = manifest.sequence
        self._programs = variant.programs
        self._resources = resources
        self._readback = readback
        self._history = history
        self._writer = writer

    def run(self, inputs: Mapping[str, Any], names: list[str]) -> dict[str, Array]:
        """Outputs `names` for `inputs`; the history changes only when it worked.

        Raises:
            RuntimeFailure: ids that are empty, no tokens, or too many; a mask or positions that are not the
                sequence's; past_key_values, which the session keeps.
        """
        new = self._new_tokens(inputs)
        history = self._history
        tokens = history.tokens + new
        check_capacity(len(tokens), len(history.tokens), self._state.capacity)
        self._check_other_inputs(inputs, len(history.tokens), len(tokens))
        caches = {port.name: port for port in self._programs["decode"].outputs if self._is_cache(port)}
        for name in names:
            if name != self._state.logits and name not in caches:
                raise RuntimeFailure(
                    f"output {name!r}", "cannot be read", f"ask for {self._state.logits} or present.*"
                )
        self._writer.write_tokens(tokens, history.past)
        self._writer.write_words(history.past, len(tokens), self._state.capacity + 1)
        every_row = self._state.logits in names and self._state.all_logits
        logits = self._replay(len(tokens), len(new), "logits" if every_row else "prefill")
        history.tokens.extend(new)
        history.past = len(history.tokens)
        return {name: logits if name == self._state.logits else self._present(caches[name]) for name in names}

    def _new_tokens(self, inputs: Mapping[str, Any]) -> list[int]:
        ids = self._state.ids
        if ids not in inputs:
            raise RuntimeFailure(f"input {ids!r}", "is missing", "give the new token ids as an array [1, S]")
        new = token_ids(inputs[ids], self._state.vocab_size, f"input {ids!r}")
        if not new:
            raise RuntimeFailure(f"input {ids!r}", "is empty", "give at least one token")
        return new

    def _check_other_inputs(self, inputs: Mapping[str, Any], known: int, total: int) -> None:
        for name, value in inputs.items():
            if name not in (self._state.ids, self._state.mask, self._state.positions):
                raise RuntimeFailure(
                    f"input {name!r}",
                    "cannot be given",
                    "leave it out: the session keeps the KV cache between calls, and reset() empties it",
                )
            if name == self._state.mask:
                mask = np.asarray(value)
                if mask.shape not in ((1, total), (total,)) or not np.all(mask == 1):
                    raise RuntimeFailure(
                        f"input {name!r}",
                        f"is not all ones of shape [1, {total}] (past and new tokens)",
                        "leave it out, or call reset() before a new sequence; padding is not supported",
                    )
            expected = list(range(known, total))
            if name == self._state.positions and np.asarray(value).ravel().tolist() != expected:
                raise RuntimeFailure(
                    f"input {name!r}",
                    f"is not {known} to {total - 1}",
                    "leave it out: positions continue the sequence",
                )

    def _replay(self, n_tokens: int, n_new: int, kind: str) -> Array:
        """Feed up to `n_tokens`; logits of the last `n_new` rows (kind `logits`) or of the last one."""
        past = self._history.past
        first_row = n_tokens - n_new
        parts = []
        for rows in choose_chunks(n_tokens - past, prefill_sizes(self._resources.programs, kind)):
            name = "decode" if rows == 1 else f"{kind}_{rows}"
            length = min(rows, n_tokens - past)
            if self._state.driven_by == "host":
                self._writer.write_words(past, n_tokens, self._state.capacity + 1, length=length)
            if kind == "logits":
                given = range(max(0, first_row - past), length)
            else:
                given = range(1 if past + length == n_tokens else 0)
            part = self._step(name, given)
            if part is not None:
                parts.append(part)
            past += length
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def _step(self, name: str, rows: range) -> Array | None:
        """Replay one program and read `rows` of its logits; without rows it is submitted and not awaited."""
        program = self._resources.programs[name]
        if not rows:
            self._resources.recorder.submit([program])
            return None
        port = next(port for port in self._programs[name].outputs if port.name == self._state.logits)
        row = self._state.vocab_size * STORAGE_NBYTES[port.storage]
        begin, end = rows.start * row // 4 * 4, -(-rows.stop * row // 4) * 4
        (data,) = self._readback.run([program], [(port.buffer, begin, end - begin)])
        shape = [1, len(rows), self._state.vocab_size]
        return from_storage(port, memoryview(data)[rows.start * row - begin :], shape)

    def _is_cache(self, port: Port) -> bool:
        return len(port.shape) == 4 and port.shape[0] == 1 and port.shape[2] == self._state.capacity

    def _present(self, port: Port) -> Array:
        """The valid part [1, kv_heads, total, head_size] of a cache [1, kv_heads, capacity, head_size]."""
        _, heads, capacity, size = port.shape
        total = len(self._history.tokens)
        row = size * STORAGE_NBYTES[port.storage]
        if row % 4 == 0:
            ranges: list[Range] = [(port.buffer, head * capacity * row, total * row) for head in range(heads)]
            return from_storage(port, b"".join(self._readback.run([], ranges)), [1, heads, total, size])
        (data,) = self._readback.run([], [(port.buffer, 0, port.nbytes)])
        return np.ascontiguousarray(from_storage(port, data)[:, :, :total])

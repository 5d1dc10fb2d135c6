"""A loaded artifact: `run` and `generate` on top of the captured graph."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Generator as PyGenerator
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from .decoder_run import DecoderRun
from .errors import RuntimeFailure
from .generate import Finish, Generator, Request
from .graph_run import run_graph
from .ports import Array
from .programs import Variant
from .readback import Readback
from .resources import Resources
from .sampling import Sampling, checked_sampling, require_words
from .schema import Manifest
from .sequence import History, Writer, check_capacity, token_ids

TOKENS_PER_SUBMIT = 8
"""Tokens encoded ahead and read together. More saves little and delays streaming and stopping."""


class Session:
    """A model on the GPU; made by `load`. Not for use by several threads at once.

    `run` takes and gives NumPy arrays under the model's own names; a language model keeps its sequence
    between calls, and both `run` and `generate` append to it until `reset`.
    """

    def __init__(
        self, manifest: Manifest, variant: Variant, reason: str, resources: Resources, *, owns_device: bool
    ) -> None:
        self.manifest = manifest
        self.variant = variant.name
        self.variant_reason = reason
        self._variant = variant
        self._resources: Resources | None = resources
        self._owns_device = owns_device
        self._readback = Readback(resources)
        self._history = History()
        self._active: weakref.ref[PyGenerator[int, None, None]] | None = None
        self._finish: Finish | None = None
        self._seed: int | None = None
        self._generator: Generator | None = None
        self._decoder: DecoderRun | None = None
        if manifest.sequence is not None:
            state, buffers = manifest.sequence, resources.buffers
            writer = Writer(state, resources.device.queue, buffers[state.buffer], buffers[state.tokens])
            self._generator = Generator(resources, state, self._history, writer)
            self._decoder = DecoderRun(manifest, variant, resources, self._readback, self._history, writer)

    @property
    def adapter_info(self) -> dict[str, Any]:
        """Vendor, device, description, adapter_type and backend_type of the GPU in use."""
        return dict(self._alive().device.adapter_info)

    @property
    def capacity(self) -> int | None:
        """Positions in the KV cache; None for a model without a sequence."""
        return self.manifest.sequence.capacity if self.manifest.sequence else None

    @property
    def tokens(self) -> list[int]:
        """The history: every token given or generated since the last reset."""
        return list(self._history.tokens)

    @property
    def finish_reason(self) -> str | None:
        """Why the last generation ended: stop, length, capacity; None while it runs or when it was left."""
        return None if self._finish is None else self._finish.value

    @property
    def seed(self) -> int | None:
        """The seed of the last generation, given or not; None before the first."""
        return self._seed

    def run(self, inputs: Mapping[str, Any], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Run the model once, as ONNX Runtime's session does.

        A language model needs its token ids [1, S] only: it continues the sequence of earlier calls. Its
        logits are [1, S, V], or [1, 1, V] where the exporter kept the last position only.

        Args:
            inputs: arrays by the model's input names.
            outputs: names wanted; None for all, but not a language model's KV cache (`present.*`), which is
                given on request.

        Raises:
            RuntimeFailure: a name, dtype or shape that is not the model's, or the cache is full.
        """
        self._begin()
        names = self._output_names(outputs)
        self._check_input_names(inputs)
        if self._decoder is not None:
            return self._decoder.run(inputs, names)
        return run_graph(self._variant.programs["run"], self._alive(), self._readback, inputs, names)

    def generate(
        self,
        ids: Any = (),
        max_new_tokens: int | None = None,
        stop_tokens: Iterable[int] | None = None,
        tokens_per_submit: int = TOKENS_PER_SUBMIT,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Iterator[int]:
        """Append `ids` to the sequence and generate, on the GPU alone: greedily, or by sampling.

        The filters work as in transformers and in that order: repetition penalty, temperature, top-k, top-p,
        min-p. A seed gives the same tokens whatever `tokens_per_submit` is, and on every GPU that computes
        the same logits.

        Args:
            ids: token ids; empty to go on from where the sequence ends.
            max_new_tokens: None for as many as fit.
            stop_tokens: None for the model's own. A stop token ends the generation and is not given.
            tokens_per_submit: tokens computed per submission and read together.
            temperature: 0 takes the most likely token. None is 0, or 1 if top_k, top_p or min_p is given.
            top_k: only the k most likely tokens, and those equal to the last of them; 0 for all.
            top_p: only the most likely tokens that together have this probability, from above 0 to 1 for all.
            min_p: only tokens at least this likely relative to the most likely one, 0 to 1.
            repetition_penalty: above 0; logits of the history's tokens are divided by it if positive, else
                multiplied. 1 for none. Greedy generation heeds it too.
            seed: of the random numbers, 0 to 2^64 - 1; None for one from the system, see `seed`.

        Returns:
            An iterator of token ids. Leaving it early is fine: the sequence is what it gave.

        Raises:
            RuntimeFailure: at once, for arguments that cannot be used.
        """
        self._begin()
        if self.manifest.sequence is None or self._generator is None:
            raise RuntimeFailure("generate", "needs a language model", "use run() for this model")
        prompt = token_ids(ids, self.manifest.sequence.vocab_size)
        sampling = checked_sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        require_words(self.manifest.sequence.words, sampling)
        request = self._request(len(prompt), max_new_tokens, stop_tokens, tokens_per_submit, sampling)
        self._seed = sampling.seed
        iterator = self._generate(self._generator, request, prompt)
        self._active = weakref.ref(iterator)
        return iterator

    def reset(self) -> None:
        """Forget the sequence. The memory of the KV cache stays."""
        self.rewind(0)

    def rewind(self, n_tokens: int) -> None:
        """Forget what is behind the first `n_tokens` of the sequence; their KV cache is used again.

        Raises:
            RuntimeFailure: the sequence has not that many tokens.
        """
        self._begin()
        known = len(self._history.tokens)
        n_tokens = _whole("n_tokens", n_tokens, 0)
        if n_tokens > known:
            raise RuntimeFailure("n_tokens", f"is {n_tokens}", f"the sequence has {known}: give at most that")
        self._history.rewind(n_tokens)

    def close(self) -> None:
        """Give the GPU's memory back. The session cannot be used afterwards; closing twice is fine."""
        if self._resources is None:
            return
        self._begin()
        resources, self._resources = self._resources, None
        self._readback.destroy()
        if self._generator is not None:
            self._generator.destroy()
        resources.destroy()
        if self._owns_device:
            resources.device.destroy()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _alive(self) -> Resources:
        if self._resources is None:
            raise RuntimeFailure("the session", "is closed", "load the artifact again")
        return self._resources

    def _begin(self) -> None:
        """Before every call: the session is open, and a generation that was left is ended."""
        self._alive()
        active = self._active() if self._active is not None else None
        self._active = None
        if active is None:
            return
        try:
            active.close()
        except ValueError:  # it is running: another thread, or a call from inside it
            raise RuntimeFailure(
                "the session", "is generating on another thread", "use one session per thread"
            ) from None

    def _request(
        self,
        n_new: int,
        max_new_tokens: int | None,
        stop_tokens: Iterable[int] | None,
        tokens_per_submit: int,
        sampling: Sampling,
    ) -> Request:
        state = self.manifest.sequence
        assert state is not None
        known = len(self._history.tokens)
        if known + n_new == 0:
            raise RuntimeFailure("the prompt", "is empty", "give at least one token")
        check_capacity(known + n_new, known, state.capacity)
        if max_new_tokens is not None:
            max_new_tokens = _whole("max_new_tokens", max_new_tokens, 0)
        tokens_per_submit = _whole("tokens_per_submit", tokens_per_submit, 1)
        stop = state.stop_tokens if stop_tokens is None else list(dict.fromkeys(stop_tokens))
        stop = token_ids(stop, state.vocab_size, "stop_tokens")
        if len(stop) > state.max_stop_tokens:
            raise RuntimeFailure(
                "stop_tokens", f"has {len(stop)} tokens", f"give {state.max_stop_tokens} at most"
            )
        n_tokens, most = known + n_new, state.capacity + 1
        wanted = most if max_new_tokens is None else n_tokens + max_new_tokens
        limited = max_new_tokens is None or wanted > most
        return Request(n_tokens, min(wanted, most), tuple(stop), tokens_per_submit, limited, sampling)

    def _generate(
        self, generator: Generator, request: Request, prompt: list[int]
    ) -> PyGenerator[int, None, None]:
        self._finish = None
        self._history.tokens.extend(prompt)
        if request.limit == request.n_tokens:
            self._finish = Finish.LENGTH
            return
        self._history.rewind_for_logits()
        try:
            yield from generator.run(request)
        finally:
            self._finish = generator.finish

    def _output_names(self, outputs: Iterable[str] | None) -> list[str]:
        ports = [port.name for port in self.manifest.model.outputs]
        if outputs is None:
            return ports if self.manifest.sequence is None else [self.manifest.sequence.logits]
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        for name in names:
            if name not in ports:
                raise RuntimeFailure(
                    f"output {name!r}", "is not the model's", f"choose from {_listed(ports)}"
                )
        return names

    def _check_input_names(self, inputs: Mapping[str, Any]) -> None:
        if not isinstance(inputs, Mapping):
            raise RuntimeFailure("inputs", "is not a mapping", "give a dictionary of arrays by name")
        ports = [port.name for port in self.manifest.model.inputs]
        for name in inputs:
            if name not in ports:
                raise RuntimeFailure(
                    f"input {name!r}", "is not the model's", f"its inputs are {_listed(ports)}"
                )


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise RuntimeFailure(name, f"is {value!r}", "give a whole number") from None
    if number < least:
        raise RuntimeFailure(name, f"is {number}", f"give {least} or more")
    return number


def _listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

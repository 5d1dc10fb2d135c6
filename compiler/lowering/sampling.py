"""The next token, chosen on the GPU: the arg-max, or one drawn at random behind filters.

Drawing takes four kernels, three of them with many workgroups. Nothing is sorted:

1. `sample_keys`: the repetition penalty on every token of the history (once each; positive logits are
   divided by it, others multiplied), then u32 keys in the order of the logits. A workgroup more clears the
   histogram and draws the random number.
2. `sample_weights`: exp((logit - greatest) / temperature) as an integer fraction of 2^31, and a histogram
   of the tokens by their weight, 32 bins per octave. It counts them for top-k, and adds up weights for top-p.
3. `sample_candidates`: the bin in which the filter ends: top-k, or top-p where there is no top-k. The tokens
   of that bin are the candidates, and those above it too if top-p follows top-k. It lists them, and adds up
   the weights of the others that survive.
4. `sample`: the least key that the filters keep. Of at most 256 candidates each is compared with all others;
   more are searched digit by digit (radix selection) until few are left. Then the first token, in the order
   of the vocabulary, at which the running sum of the surviving weights is over a random fraction of their
   total.

Each loads what it can before it waits for anything, the words of the sequence included.

The filters are those of transformers and vLLM, in their order: penalty, temperature, top-k, top-p, min-p.
top-p is a part of the weight that top-k leaves, min-p of the greatest weight. Ties: every token whose logit
equals the last one kept is kept, by top-k and top-p alike. A token under 2^-31 of the greatest is never
drawn. NaN counts as -inf.

Behind the penalty, one subtraction and one product, which WGSL rounds correctly, all is integer arithmetic: a
sum does not depend on its order, nor a probability on the GPU's `exp`. The random number is Philox-4x32-10 of
the seed and the token's place. So a seed gives one text wherever the logits agree.
"""

from __future__ import annotations

from math import prod

from ..program import Binding, Constant, DType, Kernel, Role, Tensor
from ..sequence import (
    ARGMAX_INDICES,
    ARGMAX_VALUES,
    MAX_STOP_TOKENS,
    SAMPLING_DRAW,
    SEQUENCE,
    STOP_LIMIT,
    STOP_TOKEN,
    TOKENS,
)
from .builder import Builder, reads, renamed, writes
from .sequence_state import logits_of

SAMPLE_THREADS = 256
"""Per workgroup, a power of 4; also the digit of a radix selection, and the most spans of the vocabulary."""

CPU_SAMPLE_THREADS = 16
"""The same where a CPU plays the GPU: SwiftShader takes 0.6 ms to compile a word of workgroup memory."""

BINS = 1024
"""Of the histogram: the more, the fewer candidates. A workgroup has two words of memory for each."""

CPU_BINS = 256
"""The same where a CPU plays the GPU; it has them in storage only."""

SELECTION_WORDS = 6
"""Of `sample/selection` (sample_selection.wgsl.j2)."""

assert CPU_SAMPLE_THREADS >= MAX_STOP_TOKENS, "a thread compares the token with one of them"


def greedy(builder: Builder) -> Kernel:
    """The next token: the arg-max over the LM head's partial maxima. See `sample` for what else it does."""
    return _choose(builder, _threads(builder), {}, {})


def sample(builder: Builder) -> list[Kernel]:
    """The next token: the arg-max over the LM head's partial maxima, or one drawn at random.

    It is appended to `tokens`, the sequence advances by it, and `stop` is set when it is a stop token or
    the limit is reached. In a chunk that is not the last one of the prompt only the sequence advances.

    The three kernels before it leave at once when the arg-max is wanted.
    """
    assert builder.decoder is not None
    vocab_size = builder.decoder.vocab_size
    logits = logits_of(builder)
    threads = _threads(builder)
    span, n_spans = spans(vocab_size, threads)
    bins = CPU_BINS if builder.target.cpu else BINS
    room = n_spans * span
    scratch = {
        name: builder.tensor(f"sample/{name}", DType.U32, dims, Role.ACTIVATION)
        for name, dims in {
            "scores": (2, room),
            "span_keys": (n_spans,),
            "histogram": (2 * bins,),
            "selection": (SELECTION_WORDS,),
            "list": (room, 4),
            "span_weights": (n_spans, 2),
        }.items()
    }
    tensors = {**scratch, "tokens": builder.tensors[TOKENS], "logits": logits}
    shape: dict[str, Constant] = {
        "vocab_size": vocab_size,
        "span": span,
        "n_spans": n_spans,
        "bins": bins,
        "sampling_draw": SAMPLING_DRAW,
        "direct": builder.target.cpu,
    }

    def kernel(step: str, written: str, read: str, nbytes: int, groups: int = n_spans) -> Kernel:
        bindings = [
            *reads(sequence=builder.tensors[SEQUENCE]),
            *writes(**{name: tensors[name] for name in written.split()}),
            *reads(**{name: tensors[name] for name in read.split()}),
        ]
        return _sampling_kernel(f"sample_{step}", groups, threads, bindings, shape, nbytes, vocab_size)

    # In an order that gives kernels which share a file the same binding for the same use.
    bins_nbytes = 0 if builder.target.cpu else 8 * bins
    return [
        kernel("keys", "histogram scores span_keys selection", "tokens logits", 4 + span // 8, n_spans + 1),
        kernel("weights", "histogram scores", "span_keys", 4 + bins_nbytes),
        kernel("candidates", "selection list span_weights", "scores histogram", _scan_nbytes(threads)),
        _choose(builder, threads, shape, scratch),
    ]


def _threads(builder: Builder) -> int:
    return CPU_SAMPLE_THREADS if builder.target.cpu else SAMPLE_THREADS


def _scan_nbytes(threads: int) -> int:
    """Workgroup memory of a running sum in 64 bits."""
    return 16 * threads + 16


def spans(vocab_size: int, threads: int = SAMPLE_THREADS) -> tuple[int, int]:
    """(tokens per span, spans) of the vocabulary: at most one span per thread of the last kernel."""
    unit = 4 * threads  # fours of tokens, the same number for each thread
    span = -(-vocab_size // (unit * threads)) * unit
    return span, -(-vocab_size // span)


def _choose(
    builder: Builder,
    threads: int,
    shape: dict[str, Constant],
    scratch: dict[str, Tensor],
) -> Kernel:
    """The kernel that ends a step; without `scratch` it takes the arg-max."""
    assert builder.decoder is not None
    host = builder.decoder.driven_by == "host"
    tensors = builder.tensors
    values, indices = tensors[ARGMAX_VALUES], tensors[ARGMAX_INDICES]
    state = reads(sequence=tensors[SEQUENCE]) if host else writes(sequence=tensors[SEQUENCE])
    read = ("scores", "span_weights", "selection", "list") if scratch else ()
    bindings = [
        *state,
        *writes(tokens=tensors[TOKENS]),
        *reads(partial_values=values, partial_indices=indices),
        *reads(**{name: scratch[name] for name in read}),
    ]
    constants: dict[str, Constant] = {
        **shape,
        "vocab_size": builder.decoder.vocab_size,
        "driven_by_host": host,
        "n_partials": prod(values.shape),
        "stop_limit": STOP_LIMIT,
        "stop_token": STOP_TOKEN,
        "max_stop_tokens": MAX_STOP_TOKENS,
    }
    nbytes = _scan_nbytes(threads) + 24 * threads + 36 if scratch else 8 * threads + 4
    kernel = _sampling_kernel("sample", 1, threads, bindings, constants, nbytes, prod(values.shape))
    return kernel if scratch else renamed(kernel, "sample_greedy")


def _sampling_kernel(
    name: str,
    groups: int,
    threads: int,
    bindings: list[Binding],
    constants: dict[str, Constant],
    workgroup_nbytes: int,
    work: int,
) -> Kernel:
    return Kernel(
        name=name,
        template=f"{name}.wgsl.j2",
        workgroup=(threads, 1, 1),
        grid=(groups, 1, 1),
        bindings=tuple(bindings),
        constants=tuple(sorted(constants.items())),
        nodes=(),
        workgroup_nbytes=workgroup_nbytes,
        work=work,
    )

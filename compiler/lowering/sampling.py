"""The next token, chosen on the GPU: the arg-max, or one drawn at random behind filters.

Drawing takes four kernels, three of them with many workgroups. Nothing is sorted:

1. `sample_keys`: the repetition penalty on every token of the history (once each; positive logits are
   divided by it, others multiplied), then u32 keys in the order of the logits.
2. `sample_weights`: exp((logit - greatest) / temperature) as an integer fraction of 2^31, and a histogram
   of these weights, 32 bins per octave, for top-k and top-p.
3. `sample_candidates`: the bin in which top-k or top-p ends. Only the tokens of that bin (for top-k also
   those above it) are compared one by one: it lists them, and adds up the others that survive.
4. `sample`: the exact thresholds; each of up to 256 candidates looks at all the others, more are searched
   digit by digit (radix selection). Then the first token, in the order of the vocabulary, at which the
   running sum of the surviving weights is over a random fraction of their total.

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
    SAMPLING_DRAW,
    SEQUENCE,
    STOP_LIMIT,
    STOP_TOKEN,
    TOKENS,
)
from .builder import Builder, reads, renamed, writes
from .sequence_state import logits_of

SAMPLE_THREADS = 256
"""Per workgroup; also the digit of a radix selection, and the most spans that the vocabulary is cut into."""

CPU_SAMPLE_THREADS = 16
"""The same where a CPU plays the GPU: SwiftShader takes 0.6 ms to compile a word of workgroup memory."""

BINS = 1024
"""Of the histogram of weights: 32 per octave, so that few tokens share the one in which a filter ends."""

CPU_BINS = 256
"""The same where a CPU plays the GPU."""

MIN_SPAN = 512
"""Tokens of the vocabulary per workgroup of the first three kernels, unless that makes too many spans."""

CANDIDATES_WORDS = 8 + 1
"""Words of `sample/candidates` beside its list: a header, and one more, as WGSL sizes are multiples of 8."""


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
    candidates = builder.tensor(
        "sample/candidates", DType.U32, (CANDIDATES_WORDS + 3 * vocab_size,), Role.ACTIVATION
    )
    scratch = {
        "keys": builder.tensor("sample/keys", DType.U32, (vocab_size,), Role.ACTIVATION),
        "span_keys": builder.tensor("sample/span_keys", DType.U32, (n_spans,), Role.ACTIVATION),
        "weights": builder.tensor("sample/weights", DType.U32, (vocab_size,), Role.ACTIVATION),
        "span_weights": builder.tensor("sample/span_weights", DType.U32, (n_spans, 2), Role.ACTIVATION),
        "histogram": builder.tensor("sample/histogram", DType.U32, (3, bins), Role.ACTIVATION),
        # As the kernels call it that clear its count, write it and read it.
        **dict.fromkeys(("count_of_candidates", "candidates", "listed"), candidates),
    }
    state = {"sequence": builder.tensors[SEQUENCE], "tokens": builder.tensors[TOKENS], "logits": logits}
    shape: dict[str, Constant] = {"vocab_size": vocab_size, "span": span, "n_spans": n_spans, "bins": bins}

    def kernel(step: str, read: str, written: str, nbytes: int) -> Kernel:
        tensors = {**state, **scratch}
        bindings = [
            *reads(**{name: tensors[name] for name in read.split()}),
            *writes(**{name: tensors[name] for name in written.split()}),
        ]
        name = f"sample_{step}"
        return _sampling_kernel(name, n_spans, threads, bindings, shape, nbytes, vocab_size)

    return [
        kernel("keys", "sequence tokens logits", "keys span_keys histogram", 4 + span // 8),
        kernel("weights", "sequence keys span_keys", "weights histogram count_of_candidates", 4 + 12 * bins),
        kernel(
            "candidates", "sequence keys weights histogram", "candidates span_weights", _scan_nbytes(threads)
        ),
        _choose(builder, threads, shape, scratch),
    ]


def _threads(builder: Builder) -> int:
    return CPU_SAMPLE_THREADS if builder.target.cpu else SAMPLE_THREADS


def _scan_nbytes(threads: int) -> int:
    """Workgroup memory of a running sum in 64 bits."""
    return 16 * threads + 16


def spans(vocab_size: int, threads: int = SAMPLE_THREADS) -> tuple[int, int]:
    """(tokens per span, spans) of the vocabulary: at most one span per thread of the last kernel."""
    unit = max(threads, 32)  # whole words of bits, and the same number of tokens for each thread
    span = max(MIN_SPAN, -(-vocab_size // (unit * threads)) * unit)
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
    read = ("keys", "weights", "listed", "span_weights") if scratch else ()
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
        "sampling_draw": SAMPLING_DRAW,
        "digit_bits": threads.bit_length() - 1,
        "digit_mask": hex(threads - 1),
    }
    nbytes = _scan_nbytes(threads) + 28 * threads + 12 if scratch else 8 * threads
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

"""The state of a decoder on the GPU: the 32-bit words of the `sequence` buffer, in order: a kernel
declares them up to the last one that it needs, so those that most need come first.

Between two steps of a generation the words say what the next step does; kernels read them, the host
writes them once per call. `docs/architecture.md` tells the whole story.
"""

from __future__ import annotations

SEQUENCE = "sequence"
"""The state tensor that holds the words."""

TOKENS = "tokens"
"""The state tensor with the token ids by position, i32[capacity + 1]."""

ARGMAX_VALUES, ARGMAX_INDICES = "argmax/values", "argmax/indices"
"""The greatest logits of parts of the vocabulary and their tokens, f32[n] and u32[n]."""

WORDS = (
    "past_length",  # positions in the KV cache before this step
    "length",  # rows of this step that hold tokens
    "stop",  # one of the STOP_ values
    "total_length",  # past_length + length: positions valid once this step has appended
    "call_length",  # total length at the end of the whole call: what ONNX calls total_sequence_length
    "n_tokens",  # token ids known in `tokens`
    "limit",  # n_tokens at which generation ends
    "sampling",  # one of the SAMPLING_ values; the next eight are read unless it is SAMPLING_GREEDY
    "seed_low",  # the random numbers' key, 64 bits
    "seed_high",
    "inverse_temperature",  # f32: 2^26 · log2(e) / temperature
    "top_k",  # 0: no limit
    "top_p",  # in 2^-32, rounded; 0: no limit
    "min_p",  # in 2^-31, rounded up, at least 1
    "repetition_penalty",  # f32
    "inverse_repetition_penalty",  # f32: 1 / repetition_penalty
    "n_stop_tokens",
    "stop_tokens",  # the first of MAX_STOP_TOKENS words
)
MAX_STOP_TOKENS = 16
N_WORDS = len(WORDS) - 1 + MAX_STOP_TOKENS

STOP_NO, STOP_TOKEN, STOP_LIMIT = 0, 1, 2

SAMPLING_GREEDY, SAMPLING_DRAW, SAMPLING_FIRST = 0, 1, 2
"""The arg-max of the logits; a token drawn at random; the first of the tokens that the filters leave, which
with top_k 1 is the arg-max of the penalised logits."""

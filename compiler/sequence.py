"""The state of a decoder on the GPU: the 32-bit words of the `sequence` buffer, in order.

Between two steps of a generation the words say what the next step does; kernels read them, the host
writes them once per call. `docs/architecture.md` tells the whole story.
"""

from __future__ import annotations

SEQUENCE = "sequence"
"""The state tensor that holds the words."""

TOKENS = "tokens"
"""The state tensor with the token ids by position, i32[capacity + 1]."""

WORDS = (
    "past_length",  # positions in the KV cache before this step
    "length",  # rows of this step that hold tokens
    "total_length",  # past_length + length: positions valid once this step has appended
    "call_length",  # total length at the end of the whole call: what ONNX calls total_sequence_length
    "n_tokens",  # token ids known in `tokens`
    "limit",  # n_tokens at which generation ends
    "stop",  # one of the STOP_ values
    "n_stop_tokens",
    "stop_tokens",  # the first of MAX_STOP_TOKENS words
)
MAX_STOP_TOKENS = 16
N_WORDS = len(WORDS) - 1 + MAX_STOP_TOKENS

STOP_NO, STOP_TOKEN, STOP_LIMIT = 0, 1, 2

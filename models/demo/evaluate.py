"""Loss and perplexity of an ONNX model folder on a text, by ONNX Runtime on the CPU.

    python models/demo/evaluate.py FOLDER TEXT_FILE [--tokens N] [--window 1024]

The text's ids are cut into windows that do not overlap; every token but a window's first is predicted from
those before it in the window. No special tokens are added.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Score:
    """`loss` is the mean over `n_tokens` predicted tokens, in nats; `n_bytes` is the UTF-8 they stand for."""

    loss: float
    n_tokens: int
    n_bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return self.loss * self.n_tokens / (self.n_bytes * math.log(2))

    def text(self) -> str:
        return (
            f"loss {self.loss:.4f}  perplexity {self.perplexity:.3f}  bits per byte {self.bits_per_byte:.3f}"
            f"  ({self.n_tokens} tokens)"
        )


def evaluate(folder: Path, text: str, *, n_tokens: int | None = None, window: int = 1024) -> Score:
    """Score the first `n_tokens` tokens of the text, or all. Raise ValueError for fewer than two tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:n_tokens]
    if len(ids) < 2:
        raise ValueError("a text of at least two tokens is needed")
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    total, count, n_bytes = 0.0, 0, 0
    for start in range(0, len(ids) - 1, window):
        row = ids[start : start + window]
        if len(row) > 1:
            losses = token_losses(session, config["model"]["decoder"], row)
            total += float(losses.sum())
            count += losses.size
            n_bytes += len(tokenizer.decode(row[1:], skip_special_tokens=False).encode())
    return Score(total / count, count, n_bytes)


def token_losses(
    session: onnxruntime.InferenceSession, decoder: dict[str, int], row: list[int]
) -> np.ndarray:
    """float64 [len(row) - 1]: -ln p of each token after the first, from an empty cache."""
    ids = np.array([row], np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for value in session.get_inputs():
        if value.name not in feeds:
            dtype = np.float16 if value.type == "tensor(float16)" else np.float32
            feeds[value.name] = np.empty((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), dtype)
    logits = session.run(["logits"], feeds)[0][0, :-1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    chosen = np.take_along_axis(logits, ids[0, 1:, None], 1)[:, 0]
    losses: np.ndarray = np.log(np.exp(logits).sum(1)) - chosen
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description="Loss and perplexity of an ONNX model folder on a text.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--window", type=int, default=1024)
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    print(evaluate(options.folder, text, n_tokens=options.tokens, window=options.window).text())


if __name__ == "__main__":
    main()

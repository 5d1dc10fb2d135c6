"""ONNX Runtime on the CPU as the reference for decoders: same inputs, same greedy choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class OrtDecoder:
    """A decoder model file, fed a few tokens at a time; keeps the cache like a session does."""

    def __init__(self, model: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.reset()

    def reset(self) -> None:
        self.length = 0
        self.past = {}
        for port in self.session.get_inputs():
            if port.name.startswith("past_key_values"):
                heads = port.shape[1]
                size = self._head_size(port.name)
                self.past[port.name] = np.zeros((1, heads, 0, size), _NUMPY[port.type])

    def _head_size(self, name: str) -> int:
        import json

        folder = Path(self.session._model_path).parent  # the exporter leaves the size symbolic in the graph
        return int(json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["head_size"])

    def run(self, ids: list[int]) -> np.ndarray:
        """Logits of every position of `ids` (of the last only, where the model is pruned): f32 [n, vocab]."""
        self.length += len(ids)
        feed = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self.length), np.int64),
            **self.past,
        }
        names = [port.name for port in self.session.get_outputs()]
        results = dict(zip(names, self.session.run(names, feed), strict=True))
        self.past = {
            name.replace("present.", "past_key_values."): value
            for name, value in results.items()
            if name.startswith("present.")
        }
        return results["logits"][0].astype(np.float32)

    def greedy(self, prompt: list[int], n: int) -> tuple[list[int], np.ndarray]:
        """`n` greedy tokens after `prompt`, and the logits that each was chosen from: [n, vocab]."""
        tokens: list[int] = []
        rows = [self.run(prompt)[-1]]
        for _ in range(n):
            tokens.append(int(rows[-1].argmax()))
            rows.append(self.run([tokens[-1]])[-1])
        return tokens, np.array(rows[:n])


def greedy_mismatch(fed: list[int], actual: list[int], logits: np.ndarray, tolerance: float) -> str | None:
    """None if each token of `actual` is the greedy choice; else what differs.

    `logits` [n, vocab] are the reference's, which was fed `fed`. A choice closer than `tolerance` may go
    either way, and behind a token that was not fed the two texts are different texts: nothing more is
    compared.
    """
    for i, (token, other) in enumerate(zip(actual, fed, strict=False)):
        lead = float(logits[i].max() - logits[i][token])
        if lead > tolerance:
            return f"token {i}: {token} instead of {logits[i].argmax()}, which leads by {lead:.4f}"
        if token != other:
            return None
    if len(actual) < len(fed):
        return f"only {len(actual)} of {len(fed)} tokens"
    return None

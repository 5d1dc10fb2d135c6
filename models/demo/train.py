# mypy: ignore-errors
# (torch is not among what the project needs, or its type check has)
"""Train the demo model within a time budget.

    python models/demo/train.py --out WEIGHTS --minutes 7.5 [--data DATA]

DATA is a folder that prepare.py wrote; without it the running Python's standard library is prepared first.
WEIGHTS receives model-*.safetensors (float16, Hugging Face's Llama names), config.json,
tokenizer.json, held-out.txt and train.log. The learning rate follows the share of the time that has passed.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from model import MAX_POSITIONS, Model, Sizes, exported_weights
from prepare import prepare
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional

TINY = {"hidden_size": 128, "intermediate_size": 256, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}
# Tests are half of the text; they teach syntax, but the library is what completions should look like.
MIXTURE = {"library": 0.35, "tests": 0.35, "documentation": 0.30}
SHARD_NBYTES = 15 << 20
WARM_UP, MIN_RATE = 0.02, 0.02  # shares of the time, of the peak learning rate
PROMPTS = (
    'def binary_search(a, x):\n    """',
    "import os\nimport sys\n\nclass TemporaryDirectory:\n",
    "def read_lines(path):\n    with open(",
    '    def __init__(self, name, value=None):\n        """',
    "The :mod:`json` module ",
    "for key, value in ",
)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model within a time budget.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="of training; loading and saving add to it"
    )
    parser.add_argument("--batch", type=int, default=32, help="windows a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=1.0)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--int4-from", type=float, default=0.75, help="share of the time; 1: float all along")
    parser.add_argument("--tiny", action="store_true", help="a model of 1 M parameters, to try the script")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


class Training:
    def __init__(self, chosen: argparse.Namespace) -> None:
        self.options = chosen
        chosen.out.mkdir(parents=True, exist_ok=True)
        self.log_path = chosen.out / "train.log"
        self.log_path.write_text("")
        settings = {name: value for name, value in vars(chosen).items() if not isinstance(value, Path)}
        self.log(f"options: {settings}")
        torch.manual_seed(chosen.seed)
        torch.set_float32_matmul_precision("high")
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.log(f"torch {torch.__version__} on {torch.cuda.get_device_name() if self.cuda else 'cpu'}")
        self.data = chosen.data or Path(tempfile.mkdtemp())
        if not chosen.data:
            prepare(self.data, [Path(sysconfig.get_paths()["stdlib"])], [])
        self.load_tokens()
        vocab_size = Tokenizer.from_file(str(self.data / "tokenizer.json")).get_vocab_size()
        self.sizes = Sizes(vocab_size=vocab_size, **(TINY if chosen.tiny else {}))  # type: ignore[arg-type]
        self.window = 128 if chosen.tiny else self.sizes.max_positions
        self.batch = 8 if chosen.tiny else chosen.batch
        self.model = Model(self.sizes, chosen.dropout).to(self.device)
        n_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.log(f"{n_parameters} parameters, {self.sizes}")

    def log(self, line: str) -> None:
        print(line, flush=True)
        with self.log_path.open("a") as file:
            file.write(line + "\n")

    def load_tokens(self) -> None:
        self.train_ids, self.held_out_ids = {}, {}
        with np.load(self.data / "tokens.npz") as arrays:
            for name in arrays.files:
                group, _, split = name.rpartition(".")
                tensor = torch.from_numpy(arrays[name].astype(np.int64))
                if tensor.numel() > 2 * MAX_POSITIONS:  # a machine may lack tests or documentation
                    target = self.train_ids if split == "train" else self.held_out_ids
                    target[group] = tensor.to(self.device)
        sizes = {group: ids.numel() for group, ids in self.train_ids.items()}
        self.log(f"tokens for training: {sizes}")
        self.log(f"tokens held out: { {group: ids.numel() for group, ids in self.held_out_ids.items()} }")
        groups = list(self.train_ids)
        self.shares = torch.tensor([MIXTURE[group] for group in groups])
        self.n_tokens = sum(sizes.values())

    def windows(self) -> torch.Tensor:
        """int64 [batch, window + 1]: random stretches, groups by MIXTURE."""
        groups, rows = list(self.train_ids), []
        for choice in torch.multinomial(self.shares, self.batch, replacement=True).tolist():
            ids = self.train_ids[groups[choice]]
            start = int(torch.randint(ids.numel() - self.window - 1, ()))
            rows.append(ids[start : start + self.window + 1])
        return torch.stack(rows)

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats a token, logits in bfloat16 matrix products, softmax in float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
            logits = self.model(rows[:, :-1])
        return functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out loss by group, in windows that do not overlap."""
        self.model.eval()
        losses = {}
        for group, ids in self.held_out_ids.items():
            n_rows = (ids.numel() - 1) // self.window
            rows = ids[: n_rows * self.window + 1].unfold(0, self.window + 1, self.window)
            if self.options.tiny:
                rows = rows[:16]
            parts = rows.split(32)
            losses[group] = sum(float(self.loss(part)) * len(part) for part in parts) / len(rows)
        self.model.train()
        return losses

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW; matrices decay strongly, as the text is seen many times over.

        Kim et al. 2025, Pre-training under infinite compute.
        """
        matrices = [parameter for parameter in self.model.parameters() if parameter.ndim == 2]
        vectors = [parameter for parameter in self.model.parameters() if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.options.learning_rate, betas=(0.9, 0.95), fused=self.cuda)

    def rate(self, share: float) -> float:
        """Warm-up, then a cosine to MIN_RATE of the peak."""
        share = min(share, 1.0)
        if share < WARM_UP:
            return max(share, 1e-3) / WARM_UP
        cosine = math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))
        return MIN_RATE + (1 - MIN_RATE) * 0.5 * (1 + cosine)

    def run(self) -> None:
        """Train until the time is up; the weights of the best check are on the disk then.

        Checks before the int4 phase do not count: those weights are not made for it.
        """
        optimizer = self.optimizer()
        budget = self.options.minutes * 60
        interval = budget / 20
        best, next_check, elapsed, step = math.inf, interval, 0.0, 0
        average = torch.tensor(math.nan)
        started = time.monotonic()
        while elapsed < budget:
            loss = self.step(optimizer, elapsed / budget)
            average = loss if step == 0 else torch.lerp(average, loss, 0.02)
            step += 1
            if self.cuda and step % 8 == 0:  # the clock must see the GPU's time, not the queue's
                torch.cuda.synchronize()
            elapsed = time.monotonic() - started
            if elapsed >= next_check or elapsed >= budget:
                next_check += interval
                mean = self.check(elapsed, step, float(average))
                if mean < best:
                    best = mean
                    self.save()
            if not self.model.quantized and self.options.int4_from * budget <= elapsed < budget:
                self.log(f"{elapsed:6.1f} s  weights are int4 from here")
                self.model.quantized, best = True, math.inf
        self.log(f"best held-out mean {best:.4f}: these weights are saved")

    def step(self, optimizer: torch.optim.Optimizer, share: float) -> torch.Tensor:
        """One update at `share` of the time; the loss, not waited for."""
        for group in optimizer.param_groups:
            group["lr"] = self.options.learning_rate * self.rate(share)
        loss = self.loss(self.windows())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    def check(self, elapsed: float, step: int, average: float) -> float:
        """Log the held-out losses and return their mean over the groups."""
        losses = self.evaluate()
        mean = sum(losses.values()) / len(losses)
        epochs = step * self.batch * self.window / self.n_tokens
        text = "  ".join(f"{group} {value:.4f}" for group, value in losses.items())
        self.log(
            f"{elapsed:6.1f} s  step {step}  epochs {epochs:.2f}  train {average:.4f}"
            f"  held out: {text}  mean {mean:.4f}"
        )
        return mean

    def save(self) -> None:
        """Weights of now, in shards of at most SHARD_NBYTES, and what export.py and readers need."""
        out = self.options.out
        shards: list[dict[str, torch.Tensor]] = [{}]
        nbytes = 0
        for name, tensor in exported_weights(self.model).items():
            if nbytes + tensor.nbytes > SHARD_NBYTES and shards[-1]:
                shards.append({})
                nbytes = 0
            shards[-1][name] = tensor
            nbytes += tensor.nbytes
        for index, shard in enumerate(shards):
            save_file(shard, out / f"model-{index + 1:05}-of-{len(shards):05}.safetensors")
        (out / "config.json").write_text(json.dumps(self.sizes.config(), indent=2) + "\n")
        for name in ("tokenizer.json", "held-out.txt"):
            shutil.copyfile(self.data / name, out / name)

    @torch.no_grad()
    def show_samples(self, n_tokens: int = 120) -> None:
        """Completions at temperature 0.6 (no cache: each step reads the whole text again)."""
        tokenizer = Tokenizer.from_file(str(self.data / "tokenizer.json"))
        self.model.eval()
        torch.manual_seed(self.options.seed)
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer.encode(prompt).ids], device=self.device)
            for _ in range(8 if self.options.tiny else n_tokens):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
                    logits = self.model(ids)[0, -1].float()
                token = torch.multinomial(torch.softmax(logits / 0.6, -1), 1)
                ids = torch.cat((ids, token[None]), 1)
            self.log(f"--- sample\n{tokenizer.decode(ids[0].tolist())}")


def main() -> None:
    chosen = options()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    started = time.monotonic()
    training = Training(chosen)
    training.log(f"{time.monotonic() - started:.1f} s until training starts")
    training.run()
    training.show_samples()
    training.log(f"{time.monotonic() - started:.1f} s in all")


if __name__ == "__main__":
    main()

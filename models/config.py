"""What a decoder looks like: sizes, RoPE, precision, spelling. Frozen; derive with `replace`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

BITS = 4  # MatMulNBits and GatherBlockQuantized are written with 4-bit codes


class Family(StrEnum):
    """The `type` that genai_config.json names; the graphs differ only by the other fields."""

    LLAMA = "llama"
    PHI3 = "phi3"
    MISTRAL = "mistral"
    QWEN2 = "qwen2"


class Precision(StrEnum):
    INT4 = "int4"  # MatMulNBits; everything else in the io dtype
    FP16 = "fp16"
    FP32 = "fp32"


class MaskForm(StrEnum):
    """How `seqlens_k` and `total_sequence_length` are computed from `attention_mask`."""

    PLAIN = "plain"  # total is the mask's width, through Shape
    GRAPH = "graph"  # total is the mask's sum, in int32: enable_webgpu_graph of the exporter
    MOBIUS = "mobius"  # total is element 0 of the int64 sums


@dataclass(frozen=True, slots=True)
class DefaultRope:
    theta: float = 10000.0


@dataclass(frozen=True, slots=True)
class Llama3Rope:
    """Llama 3.1's frequency scaling: long wavelengths divided by `factor`, a smooth ramp between."""

    factor: float
    original_positions: int
    theta: float = 500000.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True, slots=True)
class LongRope:
    """Phi's LongRoPE: two caches; the long one serves sequences longer than `original_positions`."""

    original_positions: int
    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    theta: float = 10000.0


Rope = DefaultRope | Llama3Rope | LongRope
SIZES = (
    "hidden_size",
    "intermediate_size",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_size",
    "vocab_size",
    "max_positions",
)
ROPES: dict[str, type[Rope]] = {"default": DefaultRope, "llama3": Llama3Rope, "longrope": LongRope}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """One decoder and one way of exporting it.

    `io_dtype` ("f16" or "f32") is the dtype of logits, KV cache, norms and scales of an int4 model; fp16 and
    fp32 models have their own. `tied`: the embedding reads the LM head's matrix. `accuracy_level` 0 leaves
    the attribute out (float activations); 4 allows int8 ones. `activation` is of the gate: "silu", "gelu" or
    "gelu_tanh". `provider` only shows in genai_config.json.
    """

    family: Family
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    vocab_size: int
    max_positions: int
    rope: Rope
    rotary_fraction: float = 1.0
    norm_epsilon: float = 1e-5
    tied: bool = False
    qkv_bias: bool = False
    activation: str = "silu"
    sliding_window: int | None = None
    precision: Precision = Precision.INT4
    io_dtype: str = "f16"
    block_size: int = 32
    symmetric: bool = True
    accuracy_level: int = 4
    mask: MaskForm = MaskForm.PLAIN
    prune_lm_head: bool = False
    provider: str = "webgpu"

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for a decoder that cannot be written."""
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.io_dtype not in ("f16", "f32"):
            raise ValueError(f"io_dtype is {self.io_dtype!r}: use 'f16' or 'f32'")
        own = {Precision.FP16: "f16", Precision.FP32: "f32"}.get(self.precision, self.io_dtype)
        if self.io_dtype != own:
            raise ValueError(f"precision {self.precision} has io_dtype {own!r}, not {self.io_dtype!r}")
        # MatMulNBits: a power of two, at least 16. ONNX Runtime's CPU kernels stop at 256.
        if self.block_size not in (16, 32, 64, 128, 256):
            raise ValueError(f"block_size is {self.block_size}: use 16, 32, 64, 128 or 256")
        if self.activation not in ("silu", "gelu", "gelu_tanh"):
            raise ValueError(f"activation is {self.activation!r}: use 'silu', 'gelu' or 'gelu_tanh'")
        if self.accuracy_level not in range(5):
            raise ValueError(f"accuracy_level is {self.accuracy_level}: use 0 to 4")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window is {self.sliding_window}: it must be at least 1, or None")
        if self.rotary_size < 2 or self.rotary_size > self.head_size or self.rotary_size % 2:
            raise ValueError(
                f"rotary_fraction {self.rotary_fraction} gives {self.rotary_size} dims: use even ones"
            )
        self._check_long_rope()

    def _check_long_rope(self) -> None:
        if not isinstance(self.rope, LongRope):
            return
        if self.max_positions <= self.rope.original_positions:
            raise ValueError(
                f"max_positions ({self.max_positions}) must exceed LongRoPE's original_positions"
                f" ({self.rope.original_positions})"
            )
        if not len(self.rope.short_factors) == len(self.rope.long_factors) == self.rotary_size // 2:
            raise ValueError(f"LongRoPE needs {self.rotary_size // 2} short_factors and long_factors")

    @property
    def rotary_size(self) -> int:
        """Leading elements of a head that RoPE rotates; the caches are half as wide."""
        return int(self.rotary_fraction * self.head_size)

    @property
    def q_size(self) -> int:
        return self.n_heads * self.head_size

    @property
    def qkv_size(self) -> int:
        return self.q_size + 2 * self.n_kv_heads * self.head_size

    def n_blocks(self, k: int) -> int:
        """Quantisation blocks in a row of `k` weights; the last may be padded."""
        return -(-k // self.block_size)


def config_to_dict(config: DecoderConfig) -> dict[str, Any]:
    """JSON-able; `config_from_dict` is the inverse."""
    record = dataclasses.asdict(config)
    kind = next(name for name, rope in ROPES.items() if isinstance(config.rope, rope))
    record["rope"] = {"type": kind, **record["rope"]}
    return record


def config_from_dict(record: dict[str, Any]) -> DecoderConfig:
    """Raise ValueError when a field is missing, unknown or out of range."""
    try:
        rope: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record["rope"].items()
        }
        fields = {
            **record,
            "rope": ROPES[rope.pop("type")](**rope),
            "family": Family(record["family"]),
            "precision": Precision(record["precision"]),
            "mask": MaskForm(record["mask"]),
        }
        return DecoderConfig(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a decoder recipe: {error}") from error

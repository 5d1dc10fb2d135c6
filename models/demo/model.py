# mypy: ignore-errors
# (torch is not among what the project needs, or its type check has)
"""The demo model in PyTorch: Llama's decoder, with Hugging Face's names for the weights.

Its int4 form is learned, not found afterwards: with `quantized` set, every matrix is rounded to the blocks of
MatMulNBits in the forward pass and the gradient passes straight through (Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK_SIZE = 32
MAX_POSITIONS = 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    vocab_size: int = 8192
    hidden_size: int = 512
    intermediate_size: int = 1024
    n_layers: int = 8
    n_heads: int = 8
    n_kv_heads: int = 2
    head_size: int = 64
    max_positions: int = MAX_POSITIONS
    theta: float = 10000.0
    norm_epsilon: float = 1e-5

    def config(self) -> dict[str, Any]:
        """config.json of a LlamaForCausalLM."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_size,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.theta,
            "rms_norm_eps": self.norm_epsilon,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "float16",
        }


def round_to_int4(weight: Tensor) -> Tensor:
    """The float32 values of MatMulNBits' symmetric 4-bit blocks along the last axis, scales in float16.

    A block's scale maps its largest magnitude to code -8, hence has the opposite sign of that weight.
    """
    blocks = weight.float().reshape(-1, BLOCK_SIZE)
    peak = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scales = (peak / -8).half().float()
    codes = (blocks / torch.where(scales == 0, 1.0, scales)).round().clamp(-8, 7)
    return (codes * scales).reshape(weight.shape)


class Model(nn.Module):
    """Token ids [b, s] → logits [b, s, vocab]; the LM head is the embedding."""

    def __init__(self, sizes: Sizes, dropout: float = 0.0) -> None:
        super().__init__()
        self.sizes, self.dropout, self.quantized = sizes, dropout, False
        self.embed_tokens = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.n_layers))
        self.norm = nn.RMSNorm(sizes.hidden_size, sizes.norm_epsilon)
        exponents = torch.arange(0, sizes.head_size, 2) / sizes.head_size
        angles = torch.outer(torch.arange(sizes.max_positions), sizes.theta**-exponents)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                branch_end = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * sizes.n_layers) if branch_end else 1))

    def weight(self, module: nn.Module) -> Tensor:
        """The module's matrix, rounded to int4 when quantised; gradients are those of the matrix itself."""
        weight: Tensor = module.weight  # type: ignore[assignment]
        if not self.quantized:
            return weight
        return weight + (round_to_int4(weight.detach()) - weight.detach())

    def forward(self, ids: Tensor) -> Tensor:
        embedding = self.weight(self.embed_tokens)
        x = self.drop(functional.embedding(ids, embedding))
        for layer in self.layers:
            x = layer(self, x)
        return functional.linear(self.norm(x), embedding)

    def drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class Layer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        hidden, inner = sizes.hidden_size, sizes.intermediate_size
        q_size, kv_size = sizes.n_heads * sizes.head_size, sizes.n_kv_heads * sizes.head_size
        self.input_layernorm = nn.RMSNorm(hidden, sizes.norm_epsilon)
        self.post_attention_layernorm = nn.RMSNorm(hidden, sizes.norm_epsilon)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(hidden, q_size, bias=False),
                "k_proj": nn.Linear(hidden, kv_size, bias=False),
                "v_proj": nn.Linear(hidden, kv_size, bias=False),
                "o_proj": nn.Linear(q_size, hidden, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(hidden, inner, bias=False),
                "up_proj": nn.Linear(hidden, inner, bias=False),
                "down_proj": nn.Linear(inner, hidden, bias=False),
            }
        )

    def forward(self, model: Model, x: Tensor) -> Tensor:
        x = x + model.drop(self.attention(model, self.input_layernorm(x)))
        return x + model.drop(self.feed_forward(model, self.post_attention_layernorm(x)))

    def attention(self, model: Model, x: Tensor) -> Tensor:
        sizes, (batch, length, _) = model.sizes, x.shape
        parts = [self.self_attn[name] for name in ("q_proj", "k_proj", "v_proj")]
        heads = (sizes.n_heads, sizes.n_kv_heads, sizes.n_kv_heads)
        q, k, v = (
            functional.linear(x, model.weight(part)).view(batch, length, n, sizes.head_size).transpose(1, 2)
            for part, n in zip(parts, heads, strict=True)
        )
        cos, sin = model.cos[:length].to(q.dtype), model.sin[:length].to(q.dtype)
        group = sizes.n_heads // sizes.n_kv_heads
        k, v = rotate(k, cos, sin).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
        return functional.linear(mixed, model.weight(self.self_attn["o_proj"]))

    def feed_forward(self, model: Model, x: Tensor) -> Tensor:
        gate = functional.linear(x, model.weight(self.mlp["gate_proj"]))
        up = functional.linear(x, model.weight(self.mlp["up_proj"]))
        return functional.linear(functional.silu(gate) * up, model.weight(self.mlp["down_proj"]))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on halves, as Llama's weights expect it (`rotary_interleaved` 0)."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def exported_weights(model: Model) -> dict[str, Tensor]:
    """float16 on the CPU by Hugging Face's names; matrices as the int4 form has them when quantised."""
    weights = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if model.quantized and value.ndim == 2:
            value = round_to_int4(value)
        weights[f"model.{name}"] = value.half().cpu().contiguous()
    return weights

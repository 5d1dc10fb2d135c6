"""The decoder graph, block by block."""

from __future__ import annotations

import math

import numpy as np

from .config import BITS, DecoderConfig, LongRope, MaskForm, Precision
from .graph import F16, F32, I64, MICROSOFT, U8, GraphWriter, Shape, value_info
from .rope import long_rope_caches, rope_caches
from .sequence import sequence_lengths
from .weights import Codes, Exact, Normal, Scales, Source, ZeroPoints, quantized_magnitude

# Deviation of a matrix' outputs for unit inputs. The branches that end in the residual share 2.0 between
# them, so that it does not grow with depth, yet dwarfs the embedding: a tied model would repeat its input.
# With these gains logits deviate by 0.7, and differ by 0.06 between int8 and float activations and by 0.005
# between fp16 and fp32 (tiny models): tolerances of 0.1 and 0.02 have room and still catch mistakes.
GAIN, RESIDUAL_GAIN, LOGITS_GAIN = 1.0, 2.0, 0.7
NORM_STD, BIAS_STD, EMBEDDING_STD = 0.05, 0.02, 0.3


def build(config: DecoderConfig) -> GraphWriter:
    """The whole graph, nodes in the exporter's (topological) order."""
    return Decoder(config).build()


class Decoder:
    """One small method per block; `residual` and `delta` are the two inputs of the next skip-norm."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.writer = GraphWriter()
        self.io = F16 if config.io_dtype == "f16" else F32
        self.residual, self.delta = "", ""
        self.residual_gain = RESIDUAL_GAIN / math.sqrt(2 * config.n_layers)

    def build(self) -> GraphWriter:
        self.signature()
        if isinstance(self.config.rope, LongRope) and self.config.mask is MaskForm.GRAPH:
            self.concatenated_rope()
        self.lengths = sequence_lengths(self.writer, self.config, self.io)
        self.residual = self.embedding()
        for layer in range(self.config.n_layers):
            self.attention(layer, self.norm(f"layers.{layer}", "input_layernorm", first=layer == 0))
            self.mlp(layer, self.norm(f"layers.{layer}", "post_attention_layernorm"))
        self.lm_head(self.norm(f"layers.{self.config.n_layers}", "final_norm_layernorm", last=True))
        return self.writer

    def signature(self) -> None:
        """Graph inputs and outputs: all keys, then all values. The cache's last dimension stays symbolic."""
        config, writer = self.config, self.writer
        rows: int | str = 1 if config.prune_lm_head else "sequence_length"
        writer.inputs.append(value_info("input_ids", I64, ["batch_size", "sequence_length"]))
        writer.inputs.append(value_info("attention_mask", I64, ["batch_size", "total_sequence_length"]))
        writer.outputs.append(value_info("logits", self.io, ["batch_size", rows, config.vocab_size]))
        for kind in ("key", "value"):
            for layer in range(config.n_layers):
                past: Shape = ["batch_size", config.n_kv_heads, "past_sequence_length", "kv_cache_dim"]
                present: Shape = ["batch_size", config.n_kv_heads, "total_sequence_length", "kv_cache_dim"]
                writer.inputs.append(value_info(f"past_key_values.{layer}.{kind}", self.io, past))
                writer.outputs.append(value_info(f"present.{layer}.{kind}", self.io, present))

    def hidden(self, size: int, rows: int | str = "sequence_length") -> list[int | str]:
        return ["batch_size", rows, size]

    def concatenated_rope(self) -> None:
        """LongRoPE for graph capture: short rows first; the kernel adds the offset."""
        short, long = long_rope_caches(self.config, self.io)
        for name, pair in zip(("cos_cache", "sin_cache"), zip(short, long, strict=True), strict=True):
            values = np.concatenate(pair)
            self.writer.weight(name, self.io, values.shape, Exact(values))

    def embedding(self) -> str:
        config, writer, io = self.config, self.writer, self.io
        base, shape = "/model/embed_tokens", self.hidden(config.hidden_size)
        if not config.tied:
            table = (config.vocab_size, config.hidden_size)
            weight = writer.weight("model.embed_tokens.weight", io, table, Normal(EMBEDDING_STD))
            return writer.node("Gather", [weight, "input_ids"], f"{base}/Gather", io, shape)
        if config.precision is Precision.INT4:
            return self.tied_quantized_embedding(base)
        perm, table = {"perm": [1, 0]}, (config.vocab_size, config.hidden_size)
        inputs = ["lm_head.MatMul.weight"]
        rows = writer.node("Transpose", inputs, f"{base}/Transpose", io, table, attributes=perm)
        return writer.node("Gather", [rows, "input_ids"], f"{base}/Gather", io, shape)

    def tied_quantized_embedding(self, base: str) -> str:
        """The LM head's codes seen as [vocab, padded hidden / 2]; padding of the last block is sliced off."""
        config, writer = self.config, self.writer
        padded = config.n_blocks(config.hidden_size) * config.block_size
        flat = [config.vocab_size, padded * BITS // 8]
        inputs = ["lm_head.MatMul.weight_Q4", writer.constant(flat)]
        codes = writer.node("Reshape", inputs, f"{base}/Reshape", U8, flat)
        inputs = [codes, "input_ids", "lm_head.MatMul.weight_scales"]
        if not config.symmetric:  # the exporter itself writes an invalid file here
            inputs.append("lm_head.MatMul.weight_zero_points")
        sizes = {"bits": BITS, "block_size": config.block_size, "gather_axis": 0, "quantize_axis": 1}
        name, op = f"{base}/GatherBlockQuantized", "GatherBlockQuantized"
        rows = writer.node(op, inputs, name, self.io, self.hidden(padded), domain=MICROSOFT, attributes=sizes)
        if padded == config.hidden_size:
            return rows
        limits = [writer.constant([0]), writer.constant([config.hidden_size]), writer.constant([-1])]
        shape = self.hidden(config.hidden_size)
        return writer.node("Slice", [rows, *limits], f"{base}/Slice", self.io, shape)

    def norm(self, layer: str, kind: str, *, first: bool = False, last: bool = False) -> str:
        """RMSNorm; after the first one it also adds the block's output to the residual (output 3)."""
        writer, shape = self.writer, self.hidden(self.config.hidden_size)
        base, size = f"/model/{layer}/{kind}", self.config.hidden_size
        weight = writer.weight(f"model.{layer}.{kind}.weight", self.io, (size,), Normal(NORM_STD, 1.0))
        epsilon = {"epsilon": self.config.norm_epsilon}
        normed = f"{base}/output_0"
        if first:
            attributes = epsilon | {"axis": -1, "stash_type": 1}
            op, inputs = "SimplifiedLayerNormalization", [self.residual, weight]
            name = f"{base}/LayerNorm"
            return writer.node(op, inputs, name, self.io, shape, output=normed, attributes=attributes)
        total = f"{base}/output_3"
        outputs = [normed] if last else [normed, "", "", total]
        inputs, op = [self.residual, self.delta, weight], "SkipSimplifiedLayerNormalization"
        writer.raw_node(op, inputs, outputs, f"{base}/SkipLayerNorm", MICROSOFT, epsilon)
        for output in outputs:
            if output:
                writer.value(output, self.io, shape)
        self.residual = total
        return normed

    def matmul(self, base: str, source: str, k: int, n: int, gain: float, **options: str | int) -> str:
        """[…, k] · [k, n]: MatMulNBits on `{base}.MatMul.weight_Q4`, or MatMul on `{base}.MatMul.weight`."""
        config, writer, io = self.config, self.writer, self.io
        name = f"{base}/MatMul"
        weight = name.strip("/").replace("/", ".") + ".weight"
        shape = self.hidden(n, options.get("rows", "sequence_length"))
        output = str(options.get("output", f"{name}/output_0"))
        if config.precision is not Precision.INT4:
            matrix = writer.weight(weight, io, (k, n), Normal(gain / math.sqrt(k)))
            return writer.node("MatMul", [source, matrix], name, io, shape, output=output)
        blocks = config.n_blocks(k)
        scales = Scales(quantized_magnitude(gain, k), config.symmetric)
        tensors: list[tuple[str, np.dtype, tuple[int, ...], Source]] = [
            ("_Q4", U8, (n, blocks, config.block_size * BITS // 8), Codes()),
            ("_scales", io, (n, blocks), scales),
        ]
        if not config.symmetric:
            tensors.append(("_zero_points", U8, (n, -(-blocks * BITS // 8)), ZeroPoints()))
        inputs = [source, *(writer.weight(weight + t[0], *t[1:], quantized=True) for t in tensors)]
        sizes = {"K": k, "N": n}
        if config.accuracy_level:
            sizes["accuracy_level"] = config.accuracy_level
        sizes |= {"bits": BITS, "block_size": config.block_size}
        name = f"{name}_Q4"
        return writer.node(
            "MatMulNBits", inputs, name, io, shape, output=output, domain=MICROSOFT, attributes=sizes
        )

    def attention(self, layer: int, source: str) -> None:
        config, writer = self.config, self.writer
        base = f"/model/layers.{layer}/attn"
        qkv = self.matmul(f"{base}/qkv_proj", source, config.hidden_size, config.qkv_size, GAIN)
        if config.qkv_bias:
            name = f"{base}/qkv_proj/Add"
            bias_name = name.strip("/").replace("/", ".") + ".bias"
            bias = writer.weight(bias_name, self.io, (config.qkv_size,), Normal(BIAS_STD))
            qkv = writer.node("Add", [qkv, bias], name, self.io, self.hidden(config.qkv_size))
        if layer == 0 and not isinstance(config.rope, LongRope):
            for name, values in zip(("cos_cache", "sin_cache"), rope_caches(config, self.io), strict=True):
                writer.weight(name, self.io, values.shape, Exact(values))
        attended = self.group_query_attention(layer, base, qkv)
        self.delta = self.matmul(
            f"{base}/o_proj", attended, config.q_size, config.hidden_size, self.residual_gain
        )

    def group_query_attention(self, layer: int, base: str, qkv: str) -> str:
        """Packed qkv in, RoPE and the KV cache inside; unused optional inputs are named ''."""
        config, writer = self.config, self.writer
        name = f"{base}/GroupQueryAttention"
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        inputs = [qkv, "", "", *past, *self.lengths, "cos_cache", "sin_cache", "", "", ""]
        output = f"{name}/output_0"
        outputs = [output, f"present.{layer}.key", f"present.{layer}.value"]
        attributes = {
            "num_heads": config.n_heads,
            "kv_num_heads": config.n_kv_heads,
            "scale": 1 / math.sqrt(config.head_size),
            "local_window_size": config.sliding_window or -1,
            "softcap": 0.0,
            "do_rotary": 1,
            "rotary_interleaved": 0,
        }
        writer.raw_node("GroupQueryAttention", inputs, outputs, name, MICROSOFT, attributes)
        writer.value(output, self.io, self.hidden(config.q_size))
        return output

    def mlp(self, layer: int, source: str) -> None:
        """A gated MLP: down(act(gate(x)) · up(x))."""
        config, writer, io = self.config, self.writer, self.io
        base, shape = f"/model/layers.{layer}/mlp", self.hidden(config.intermediate_size)
        gate = self.matmul(f"{base}/gate_proj", source, config.hidden_size, config.intermediate_size, GAIN)
        up = self.matmul(f"{base}/up_proj", source, config.hidden_size, config.intermediate_size, GAIN)
        if config.activation == "silu":
            sigmoid = writer.node("Sigmoid", [gate], f"{base}/act_fn/Sigmoid", io, shape)
            activated = writer.node("Mul", [gate, sigmoid], f"{base}/act_fn/Mul", io, shape)
        else:
            form = {"approximate": "tanh" if config.activation == "gelu_tanh" else "none"}
            activated = writer.node("Gelu", [gate], f"{base}/act_fn/Gelu", io, shape, attributes=form)
        gated = writer.node("Mul", [activated, up], f"{base}/Mul", io, shape)
        self.delta = self.matmul(
            f"{base}/down_proj", gated, config.intermediate_size, config.hidden_size, self.residual_gain
        )

    def lm_head(self, source: str) -> None:
        """Logits of every position, or of the last alone when pruned."""
        config, writer = self.config, self.writer
        rows: int | str = "sequence_length"
        if config.prune_lm_head:
            rows, size = 1, config.hidden_size
            last = [source, writer.constant(-1)]
            shape: Shape = ["batch_size", size]
            source = writer.node(
                "Gather", last, "/lm_head/prune/Gather", self.io, shape, attributes={"axis": 1}
            )
            inputs = [source, writer.constant([1])]
            source = writer.node(
                "Unsqueeze", inputs, "/lm_head/prune/Unsqueeze", self.io, self.hidden(size, 1)
            )
        self.matmul(
            "/lm_head", source, config.hidden_size, config.vocab_size, LOGITS_GAIN, rows=rows, output="logits"
        )

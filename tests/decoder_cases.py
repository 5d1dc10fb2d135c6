"""The decoders that tests compile: families by spelling, and shapes that break things."""

from __future__ import annotations

from dataclasses import replace

from webgpu_compile.models import DecoderConfig, LongRope, MaskForm, Precision, preset

PLAIN, GRAPH, MOBIUS = MaskForm.PLAIN, MaskForm.GRAPH, MaskForm.MOBIUS
MASKS = (PLAIN, GRAPH, MOBIUS)
FP16 = {"precision": Precision.FP16}
FP32 = {"precision": Precision.FP32, "io_dtype": "f32"}
FAMILIES = ("tiny-llama", "tiny-llama-untied", "tiny-phi3", "tiny-phi4", "tiny-mistral", "tiny-qwen25")


def of(name: str, **changes: object) -> DecoderConfig:
    return replace(preset(name), **changes)  # type: ignore[arg-type]


def spellings() -> dict[str, tuple[DecoderConfig, str]]:
    """(config, activations): a Latin square, so that every two of family, spelling and precision meet."""
    forms = (("int4-float", {}, "float"), ("int4-int8", {}, "int8"), ("fp16", FP16, "float"))
    return {
        f"{family[5:]}-{form}-{mask}": (of(family, mask=mask, **changes), activations)
        for i, family in enumerate(FAMILIES)
        for j, (form, changes, activations) in enumerate(forms)
        for mask in (MASKS[(i + j) % 3],)
    }


def shape(**changes: object) -> DecoderConfig:
    """One layer, one K/V head, unlike sizes everywhere, and a short context: quick, and mix-ups show."""
    small: dict[str, object] = {
        "hidden_size": 192,
        "intermediate_size": 320,
        "n_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 1,
        "head_size": 80,
        "vocab_size": 523,
        "max_positions": 256,
    }
    return of("tiny-llama-untied", **(small | changes))


SHAPES: dict[str, DecoderConfig] = {
    # block sizes, each with a K that its blocks divide and one that they do not (320, 192 and 160)
    "block16-asymmetric": shape(block_size=16, symmetric=False, mask=MOBIUS),
    "block32-asymmetric-tied-f32": shape(symmetric=False, tied=True, io_dtype="f32"),
    "block64-tied": shape(block_size=64, tied=True, mask=GRAPH),
    "block128-asymmetric-bias": shape(block_size=128, symmetric=False, qkv_bias=True),
    "block128-f32": shape(block_size=128, io_dtype="f32", mask=GRAPH),
    "block256": shape(block_size=256, mask=MOBIUS),
    "block256-asymmetric-tied": shape(block_size=256, symmetric=False, tied=True),
    # K no multiple of 32, 16 or 4, N prime
    "odd-sizes": shape(hidden_size=222, intermediate_size=331, vocab_size=521, head_size=96, n_layers=3),
    "odd-sizes-asymmetric-block16": shape(
        hidden_size=212, intermediate_size=331, block_size=16, symmetric=False, tied=True
    ),
    "odd-sizes-fp16": shape(hidden_size=218, intermediate_size=331, vocab_size=521, mask=GRAPH, **FP16),
    "odd-hidden-fp16-tied": shape(hidden_size=201, vocab_size=541, tied=True, **FP16),
    # heads
    "group1-head64": shape(n_heads=3, n_kv_heads=3, head_size=64, qkv_bias=True, mask=GRAPH),
    "group3-head128-f32": shape(n_heads=6, n_kv_heads=2, head_size=128, io_dtype="f32", mask=MOBIUS),
    "group7-head80-bias": shape(n_heads=7, head_size=80, qkv_bias=True, mask=MOBIUS),
    "group7-head96-fp16": shape(n_heads=14, n_kv_heads=2, head_size=96, **FP16),
    "group3-head128-fp16-bias": shape(n_heads=3, head_size=128, qkv_bias=True, **FP16),
    "window-bias-partial-rotary": shape(qkv_bias=True, sliding_window=7, rotary_fraction=0.4, mask=GRAPH),
    # the LM head for the last position alone
    "pruned": shape(prune_lm_head=True, n_layers=3),
    "pruned-tied-bias-graph": shape(prune_lm_head=True, tied=True, qkv_bias=True, mask=GRAPH),
    "pruned-fp16": shape(prune_lm_head=True, tied=True, mask=MOBIUS, **FP16),
    "pruned-f32": shape(prune_lm_head=True, io_dtype="f32"),
    "fp32": shape(qkv_bias=True, **FP32),
    "fp32-tied-graph": shape(tied=True, n_layers=3, mask=GRAPH, **FP32),
}


def long_rope(*, original: int = 40, context: int = 160, **changes: object) -> DecoderConfig:
    """tiny-phi4 with a short original context, so that a test crosses it; factors differ by 0.2 and 1."""
    steps = [tuple(1.0 + step * i for i in range(24)) for step in (0.02, 0.4)]
    return of("tiny-phi4", max_positions=context, rope=LongRope(original, *steps), **changes)

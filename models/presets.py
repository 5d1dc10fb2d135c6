"""Named shapes: the full-size models people run, and tiny ones with the same structure for tests.

Sizes are those of the published config.json files. LongRoPE factors are a geometric stand-in (1 to 32), as
those of a checkpoint belong to the checkpoint.
"""

from __future__ import annotations

from .config import DecoderConfig, DefaultRope, Family, Llama3Rope, LongRope


def long_rope(rotary_size: int, original_positions: int) -> LongRope:
    n = rotary_size // 2
    long_factors = tuple(round(32 ** (i / (n - 1)), 4) for i in range(n))
    return LongRope(original_positions, short_factors=(1.0,) * n, long_factors=long_factors)


def steps(n: int, step: float) -> tuple[float, ...]:
    """1, 1 + step, 1 + 2 · step, …: short and long factors that differ, for tests."""
    return tuple(1.0 + step * i for i in range(n))


def tiny(family: Family, **changes: object) -> DecoderConfig:
    """Two layers of width 256. The vocabulary (1056) equals no other size, so that a mix-up shows."""
    fields: dict[str, object] = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_size": 64,
        "vocab_size": 1056,
        "max_positions": 2048,
        "rope": DefaultRope(),
    }
    return DecoderConfig(family=family, **(fields | changes))  # type: ignore[arg-type]


PRESETS: dict[str, DecoderConfig] = {
    "tiny-llama": tiny(Family.LLAMA, n_kv_heads=1, tied=True, rope=Llama3Rope(32.0, 512)),
    "tiny-llama-untied": tiny(Family.LLAMA),
    "tiny-phi3": tiny(Family.PHI3, n_kv_heads=4),
    "tiny-phi4": tiny(
        Family.PHI3,
        hidden_size=384,
        n_heads=6,
        max_positions=4096,
        rotary_fraction=0.75,
        rope=LongRope(512, steps(24, 0.02), steps(24, 0.4)),
        tied=True,
    ),
    "tiny-mistral": tiny(Family.MISTRAL, sliding_window=16),
    "tiny-qwen25": tiny(
        Family.QWEN2, tied=True, qkv_bias=True, norm_epsilon=1e-6, rope=DefaultRope(1000000.0)
    ),
    "llama-3.2-1b": DecoderConfig(
        Family.LLAMA, 2048, 8192, 16, 32, 8, 64, 128256, 131072, Llama3Rope(32.0, 8192), tied=True
    ),
    "llama-3.2-3b": DecoderConfig(
        Family.LLAMA, 3072, 8192, 28, 24, 8, 128, 128256, 131072, Llama3Rope(32.0, 8192), tied=True
    ),
    "llama-3.1-8b": DecoderConfig(
        Family.LLAMA, 4096, 14336, 32, 32, 8, 128, 128256, 131072, Llama3Rope(8.0, 8192)
    ),
    "phi-3-mini-4k": DecoderConfig(Family.PHI3, 3072, 8192, 32, 32, 32, 96, 32064, 4096, DefaultRope()),
    "phi-4-mini": DecoderConfig(
        Family.PHI3, 3072, 8192, 32, 24, 8, 128, 200064, 131072, long_rope(96, 4096), 0.75, tied=True
    ),
    "mistral-7b": DecoderConfig(
        Family.MISTRAL, 4096, 14336, 32, 32, 8, 128, 32000, 32768, DefaultRope(), sliding_window=4096
    ),
    "qwen2.5-0.5b": DecoderConfig(
        Family.QWEN2, 896, 4864, 24, 14, 2, 64, 151936, 32768, DefaultRope(1e6), 1.0, 1e-6, True, True
    ),
    "qwen2.5-7b": DecoderConfig(
        Family.QWEN2, 3584, 18944, 28, 28, 4, 128, 152064, 32768, DefaultRope(1e6), 1.0, 1e-6, False, True
    ),
}


def preset_names() -> tuple[str, ...]:
    return tuple(PRESETS)


def preset(name: str) -> DecoderConfig:
    """The decoder called `name`; raise ValueError, listing the names, when there is none."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}: use one of {', '.join(PRESETS)}")
    return PRESETS[name]

"""What sampling costs: microseconds per token beyond a greedy program without its three kernels.

    python tests/kernels/sampling_cost.py [vocabulary]

Many replays of the arg-max and the sampling kernels are submitted together, and the GPU runs them one after
the other.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from test_sample_kernels import PARAMETERS, Sampler, logits_of  # noqa: E402
from webgpu_compile.runtime.sampling import Sampling  # noqa: E402

N_TOKENS = 1000


def microseconds(sampler: Sampler, sampling: Sampling, n_history: int) -> float:
    """Per replay: the least of five measurements."""
    logits = logits_of(sampler.vocab_size)
    history = [i % sampler.vocab_size for i in range(n_history)]
    sampler.run(logits, history, sampling, 10)  # software GPUs compile at the first dispatch
    best = float("inf")
    for _ in range(5):
        times = []
        for n in (N_TOKENS // 10, N_TOKENS):
            start = time.perf_counter()
            sampler.run(logits, history, sampling, n)
            times.append(time.perf_counter() - start)
        best = min(best, (times[1] - times[0]) / (N_TOKENS * 0.9))
    return 1e6 * best


def main() -> None:
    sampler = Sampler(int(sys.argv[1]) if len(sys.argv) > 1 else 128256)
    every, sampler.steps = sampler.steps, [sampler.steps[0], sampler.steps[-1]]
    bare = microseconds(sampler, Sampling(), 10)
    sampler.steps = every
    print(
        f"without the kernels {bare:.1f} us, greedy + {microseconds(sampler, Sampling(), 10) - bare:.1f} us"
    )
    for name, options in PARAMETERS.items():
        sampling = Sampling(**{"temperature": 1.0, "seed": 1, **options})
        costs = [microseconds(sampler, sampling, n) - bare for n in (10, 3500)]
        print(f"{name}: + {costs[0]:.1f} us, with a history of 3,500 tokens + {costs[1]:.1f} us")


if __name__ == "__main__":
    main()

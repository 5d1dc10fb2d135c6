"""What webgpu-run says about a generation: --stats for people, --json for programs."""

from __future__ import annotations

from typing import Any

from .completion import Completion
from .session import Session


def device_text(session: Session, load: float) -> str:
    """What runs, and the seconds that loading it took."""
    info = session.adapter_info
    device = f"{info['device']} ({info['backend_type']}), variant {session.variant_reason}"
    return f"{device}\nload         {load:8.2f} s"


def stats_text(completion: Completion) -> str:
    """Lines of --stats about a generation."""
    times, lines = timings(completion), []
    if completion.tokens:
        fed = completion.n_prompt - completion.n_cached
        cached = f", {completion.n_cached} more from the cache" if completion.n_cached else ""
        lines.append(f"first token  {times['prompt_ms']:8.1f} ms")
        lines.append(f"prompt       {times['prompt_per_second']:8.1f} tokens/s  ({fed} tokens{cached})")
    if times["predicted_per_second"]:
        rate = times["predicted_per_second"]
        lines.append(f"generation   {rate:8.1f} tokens/s  ({len(completion.tokens)} tokens)")
    settings = ", ".join(f"{name} {value}" for name, value in completion.sampling.items())
    return "\n".join([*lines, f"sampling     {settings if completion.sampling['temperature'] else 'greedy'}"])


def timings(completion: Completion) -> dict[str, Any]:
    """Times by the names that llama.cpp's server gives them.

    The prompt's time ends with the first token, which its last chunk makes; the rate of the others is theirs.
    """
    times, n = completion.times, len(completion.tokens)
    fed, rest = completion.n_prompt - completion.n_cached, times.last - times.first
    return {
        "prompt_n": fed,
        "prompt_ms": 1000 * times.first,
        "prompt_per_second": fed / times.first if times.first else None,
        "predicted_n": n,
        "predicted_ms": 1000 * rest,
        "predicted_per_second": (n - 1) / rest if n > 1 and rest > 0 else None,
    }


def as_json(
    name: str,
    session: Session,
    completion: Completion,
    load: float,
    *,
    chat: bool,
    ids: bool,
) -> dict[str, Any]:
    """A result in the shape of OpenAI's API, with `tokens` for text where ids were asked for.

    finish_reason is stop or length (also when the KV cache is full), or null after Ctrl-C.
    """
    reason = "length" if completion.finish_reason == "capacity" else completion.finish_reason
    answer: dict[str, Any] = {"text": completion.text}
    if ids:
        answer = {"tokens": completion.tokens}
    elif chat:
        answer = {"message": {"role": "assistant", "content": completion.text}}
    n_prompt, n = completion.n_prompt, len(completion.tokens)
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n, "total_tokens": n_prompt + n}
    return {
        "object": "chat.completion" if chat else "text_completion",
        "model": name,
        "choices": [{"index": 0, **answer, "finish_reason": reason}],
        "usage": usage,
        "sampling": completion.sampling,
        "timings": {"load_ms": 1000 * load, **timings(completion)},
        "device": session.adapter_info["device"],
        "variant": session.variant,
    }

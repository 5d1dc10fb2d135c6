"""webgpu-run: generate from an artifact, streaming."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import click

from .artifact import open_artifact
from .errors import RuntimeFailure
from .inspect_tables import printable
from .loading import load
from .session import TOKENS_PER_SUBMIT, Session
from .text import TextStream, load_tokenizer

INTERRUPTED = 130


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path())
@click.option("--prompt", help="Text to go on from; needs the artifact's tokenizer.json.")
@click.option("--tokens", help="Token ids to go on from, as 1,2,3; token ids are printed.")
@click.option("-n", "--max-new-tokens", type=click.IntRange(min=0), help="Stop after so many tokens.")
@click.option("--variant", help="Force a variant; the best that the adapter runs otherwise.")
@click.option(
    "--tokens-per-submit",
    type=click.IntRange(min=1),
    default=TOKENS_PER_SUBMIT,
    show_default=True,
    help="Tokens that the GPU makes on its own before they are read.",
)
@click.option("--stats", is_flag=True, help="Print the time to the first token and tokens per second.")
def main(
    folder: str,
    prompt: str | None,
    tokens: str | None,
    max_new_tokens: int | None,
    variant: str | None,
    tokens_per_submit: int,
    stats: bool,
) -> None:
    """Generate from the artifact in FOLDER, greedily. Ctrl-C ends the generation."""
    warnings.showwarning = _show_warning
    try:
        sys.exit(run(folder, prompt, tokens, max_new_tokens, variant, tokens_per_submit, stats))
    except RuntimeFailure as error:
        click.echo(f"error: {printable(str(error), keep=chr(10))}", err=True)
        sys.exit(2)


@dataclass(slots=True)
class Timing:
    """Seconds, and the tokens that they were for."""

    load: float = 0.0
    first: float = 0.0
    total: float = 0.0
    n_prompt: int = 0
    n_tokens: int = 0

    def text(self) -> str:
        lines = [f"load         {self.load:8.2f} s"]
        if self.n_tokens:
            rate = self.n_prompt / self.first if self.first else 0.0
            lines.append(f"first token  {1000 * self.first:8.1f} ms")
            lines.append(f"prompt       {rate:8.1f} tokens/s  ({self.n_prompt} tokens)")
        if self.n_tokens > 1 and self.total > self.first:
            rate = (self.n_tokens - 1) / (self.total - self.first)
            lines.append(f"generation   {rate:8.1f} tokens/s  ({self.n_tokens} tokens)")
        return "\n".join(lines)


def run(
    folder: str,
    prompt: str | None,
    tokens: str | None,
    max_new_tokens: int | None,
    variant: str | None,
    tokens_per_submit: int,
    stats: bool,
) -> int:
    """Load, generate and print; returns the exit code.

    Raises:
        RuntimeFailure: the artifact, the adapter or an option cannot be used.
    """
    if (prompt is None) == (tokens is None):
        raise RuntimeFailure("the prompt", "must be given once", "use either --prompt TEXT or --tokens 1,2,3")
    if tokens is not None:
        ids, stream = parse_tokens(tokens), None
    else:
        tokenizer = load_tokenizer(open_artifact(folder))
        ids, stream = tokenizer.encode(prompt).ids, TextStream(tokenizer)
    timing = Timing(n_prompt=len(ids))
    start = time.perf_counter()
    with load(folder, variant=variant) as session:
        timing.load = time.perf_counter() - start
        iterator = session.generate(ids, max_new_tokens, tokens_per_submit=tokens_per_submit)
        with interruptible() as interrupted:
            _print_stream(_timed(iterator, timing, interrupted), stream)
        if stats:
            click.echo(_where(session), err=True)
            click.echo(timing.text(), err=True)
        if interrupted():
            click.echo("interrupted", err=True)
            return INTERRUPTED
    return 0


def parse_tokens(text: str) -> list[int]:
    """1,2,3 or 1 2 3  =>  [1, 2, 3]

    Raises:
        RuntimeFailure: something else.
    """
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise RuntimeFailure("--tokens", f"is {text[:40]!r}", "give token ids as 1,2,3") from None


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag that the caller looks at; a second one is a KeyboardInterrupt as usual.

    An exception could otherwise rise anywhere, in a callback of the GPU library too.
    """
    seen = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)


def _timed(iterator: Iterable[int], timing: Timing, interrupted: Callable[[], bool]) -> Iterator[int]:
    start = time.perf_counter()
    for token in iterator:
        timing.total = time.perf_counter() - start
        timing.first = timing.first or timing.total
        timing.n_tokens += 1
        yield token
        if interrupted():
            return


def _print_stream(tokens: Iterable[int], stream: TextStream | None) -> None:
    """Text as it comes, or token ids separated by commas; a line feed at the end."""
    separator = ""
    for token in tokens:
        text = f"{separator}{token}" if stream is None else stream.push(token)
        separator = ","
        _write(text)
    if stream is not None:
        _write(stream.finish())
    _write("\n")


def _write(text: str) -> None:
    # A model may write anything, also what drives a terminal.
    sys.stdout.write(printable(text, keep="\n\t") if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _where(session: Session) -> str:
    info = session.adapter_info
    return f"{info['device']} ({info['backend_type']}), variant {session.variant_reason}"


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


if __name__ == "__main__":
    main()

"""webgpu-run without a conversation: one prompt and its text, or the perplexity of a file."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from .artifact import open_artifact
from .chat_template import Message
from .completion import Completion, TokenIds
from .errors import RuntimeFailure
from .inspect_tables import printable
from .loading import load
from .perplexity import Score, measure_perplexity
from .run_input import parse_tokens, prompt_text, read_text
from .run_options import RunOptions
from .run_report import as_json, device_text, stats_text
from .sampling_defaults import merged, sampling_defaults
from .session import Session
from .text import load_tokenizer
from .text_generator import TextGenerator

INTERRUPTED = 130


def run(options: RunOptions) -> int:
    """Do what the options ask for; returns the exit code.

    Raises:
        RuntimeFailure: the artifact, the adapter, the prompt or an option cannot be used.
    """
    if options.perplexity is not None:
        return _perplexity(options, options.perplexity)
    if options.window is not None:
        raise RuntimeFailure("--window", "is for --perplexity", "leave it out")
    if options.tokens is not None:
        prompt_text(options)  # refuses a second prompt
        return _continue_ids(options, parse_tokens(options.tokens))
    prompt = prompt_text(options)
    if prompt is None:
        if options.json:
            raise RuntimeFailure("--json", "needs a prompt", "give --prompt TEXT, or pipe one in")
        from .interactive import converse

        return converse(options)
    start = time.perf_counter()
    with TextGenerator(options.folder, variant=options.variant) as generator:
        seconds = time.perf_counter() - start
        chat = uses_chat(options, generator)
        completion = begin(generator, options, prompt, chat)
        return _show(options, generator.session, completion, seconds, chat=chat)


def uses_chat(options: RunOptions, generator: TextGenerator) -> bool:
    """Whether prompts go into the chat template: as asked for, or where there is one.

    Raises:
        RuntimeFailure: a chat is asked for and the model has no template.
    """
    wanted = "--chat" if options.chat else "--system" if options.system is not None else None
    if wanted is not None and generator.chat_template is None:
        raise RuntimeFailure(
            wanted,
            "needs a chat template, which this model does not have",
            "leave it out: the text goes in as is",
        )
    if options.system is not None and options.chat is False:
        raise RuntimeFailure("--system", "is part of a chat", "leave out --no-chat, or --system")
    return generator.chat_template is not None and options.chat is not False


def begin(
    generator: TextGenerator, options: RunOptions, prompt: str, chat: bool, before: Sequence[Message] = ()
) -> Completion:
    """Start the generation that `prompt` asks for; `before` are earlier messages of a chat."""
    if not chat:
        return generator.generate(prompt, **options.generation())
    system = [{"role": "system", "content": options.system}] if options.system is not None else []
    messages = [*system, *before, {"role": "user", "content": prompt}]
    return generator.chat(messages, **options.generation())


def print_stream(completion: Completion) -> bool:
    """Write the text as it comes. Ctrl-C ends it; returns whether that happened."""
    with interruptible(completion.stop) as interrupted:
        for text in completion:
            # A model may write anything, also what drives a terminal.
            sys.stdout.write(printable(text, keep="\n\t") if sys.stdout.isatty() else text)
            sys.stdout.flush()
    return interrupted()


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C calls `stop`; a second one is a KeyboardInterrupt as usual. Gives whether there was one.

    An exception could otherwise rise anywhere, in a callback of the GPU library too.
    """
    seen = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)


def _continue_ids(options: RunOptions, ids: list[int]) -> int:
    """--tokens: ids in, ids out, no tokenizer."""
    for name in ("stop", "system", "chat"):
        if getattr(options, name):
            raise RuntimeFailure(f"--{name}", "is about text", "leave it out, or give --prompt for --tokens")
    defaults = sampling_defaults(open_artifact(options.folder))
    settings = merged(defaults, options.generation())
    settings.pop("stop")
    start = time.perf_counter()
    with load(options.folder, variant=options.variant) as session:
        seconds = time.perf_counter() - start
        completion = Completion(session, ids, TokenIds(), **settings)
        return _show(options, session, completion, seconds, ids=True)


def _show(
    options: RunOptions,
    session: Session,
    completion: Completion,
    load_seconds: float,
    *,
    chat: bool = False,
    ids: bool = False,
) -> int:
    if options.json:
        with interruptible(completion.stop) as was_interrupted:
            for _ in completion:
                pass
        interrupted = was_interrupted()
        name = Path(options.folder).resolve().name
        result = as_json(name, session, completion, load_seconds, chat=chat, ids=ids)
        click.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        interrupted = print_stream(completion)
        click.echo()
    if options.stats:
        click.echo(device_text(session, load_seconds), err=True)
        click.echo(stats_text(completion), err=True)
    if interrupted:
        click.echo("interrupted", err=True)
    return INTERRUPTED if interrupted else 0


def _perplexity(options: RunOptions, file: str) -> int:
    for name in ("prompt", "prompt_file", "tokens"):
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise RuntimeFailure(option, "is not for --perplexity", "leave one of them out")
    text = read_text(file)
    tokenizer = load_tokenizer(open_artifact(options.folder), "--perplexity")
    start = time.perf_counter()
    with load(options.folder, variant=options.variant) as session:
        loaded = time.perf_counter()
        score = _measure(session, tokenizer, text, options.window)
        seconds = time.perf_counter() - loaded
    if options.json:
        names = ("loss", "perplexity", "bits_per_byte", "n_tokens", "n_bytes")
        click.echo(json.dumps({name: getattr(score, name) for name in names}, indent=2))
    else:
        click.echo(score.text())
    if options.stats:
        rate = score.n_tokens / seconds
        click.echo(f"load         {loaded - start:8.2f} s", err=True)
        click.echo(f"prompt       {rate:8.1f} tokens/s  ({score.n_tokens} tokens)", err=True)
    return 0


def _measure(session: Session, tokenizer: object, text: str, window: int | None) -> Score:
    """With a bar where standard error is a terminal."""
    if not sys.stderr.isatty():
        return measure_perplexity(session, tokenizer, text, window=window)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.fields[loss]}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", loss="loss …", total=None)

        def advance(done: int, n_tokens: int, loss: float) -> None:
            bar.update(task, completed=done, total=n_tokens, loss=f"loss {loss:.4f}")

        return measure_perplexity(session, tokenizer, text, window=window, progress=advance)

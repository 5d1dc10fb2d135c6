"""webgpu-run at a terminal: type prompts, or talk to a model that has a chat template.

Lines are edited by readline, with a history and, where it supports that, pasting of several lines at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import click

from .completion import Completion
from .errors import RuntimeFailure
from .inspect_tables import printable
from .run_once import begin, print_stream, uses_chat
from .run_options import RunOptions
from .run_report import stats_text
from .text_generator import TextGenerator

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'
HELP = f"""\
{QUOTES}       begins and ends a text of several lines
/clear    forget the conversation
/help     this help
/bye      leave, as does Ctrl-D
Ctrl-C    stop the text that is being generated
"""
LEAVE = ("/bye", "/exit", "/quit")


class LeftError(Exception):
    """The user has left."""


def converse(options: RunOptions) -> int:
    """Read, generate, print, until the user leaves; returns the exit code.

    Raises:
        RuntimeFailure: the artifact, the adapter or an option cannot be used.
    """
    with TextGenerator(options.folder, variant=options.variant) as generator:
        talk = Conversation(generator, options, uses_chat(options, generator))
        what = "Talk to the model" if talk.chat else "Type the beginning of a text"
        click.echo(f"{what}. {QUOTES} for several lines, /help, Ctrl-D to leave.", err=True)
        line_editing()
        while True:
            try:
                talk.answer(read_entry(input))
            except LeftError:
                return 0


class Conversation:
    """What was said so far; without a chat template every prompt stands alone."""

    def __init__(self, generator: TextGenerator, options: RunOptions, chat: bool) -> None:
        self.chat = chat
        self._generator = generator
        self._options = options
        self._messages: list[dict[str, str]] = []

    def answer(self, entry: str) -> None:
        """Generate for an entry, or obey a command. What goes wrong is said, and nothing is lost."""
        match entry.strip():
            case "":
                return
            case "/clear":
                self._messages.clear()
                click.echo("The conversation is forgotten.", err=True)
                return
            case "/help" | "/?":
                click.echo(HELP, err=True, nl=False)
                return
            case text if text in LEAVE:
                raise LeftError
            case text if text.startswith("/") and len(text.split()) == 1 and text[1:].isalpha():
                click.echo(f"{printable(text)}: there is no such command; see /help.", err=True)
                return
        try:
            self._say(entry)
        except RuntimeFailure as error:
            hint = " (/clear forgets the conversation)" if self._messages else ""
            click.echo(f"error: {printable(str(error), keep=chr(10))}{hint}", err=True)

    def _say(self, entry: str) -> None:
        completion = begin(self._generator, self._options, entry, self.chat, self._messages)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a full cache is said below
            print_stream(completion)
        click.echo()
        if self.chat:
            answer = {"role": "assistant", "content": completion.text}
            self._messages += [{"role": "user", "content": entry}, answer]
        self._after(completion)

    def _after(self, completion: Completion) -> None:
        if completion.finish_reason == "capacity":
            capacity = self._generator.session.capacity
            hint = "; /clear forgets the conversation" if self.chat else ""
            click.echo(f"(the KV cache is full at {capacity} positions{hint})", err=True)
        if self._options.stats:
            click.echo(stats_text(completion), err=True)


def read_entry(read: Callable[[str], str]) -> str:
    '''One line, or several between """ and """. Ctrl-C begins anew.

    Raises:
        LeftError: at the end of the input.
    '''
    while True:
        try:
            line = read(PROMPT)
            if not line.lstrip().startswith(QUOTES):
                return line
            return _quoted(line.lstrip().removeprefix(QUOTES), read)
        except KeyboardInterrupt:
            click.echo("\nUse Ctrl-D or /bye to leave.", err=True)
        except EOFError:
            click.echo(err=True)
            raise LeftError from None


def _quoted(line: str, read: Callable[[str], str]) -> str:
    lines = []
    while not line.rstrip().endswith(QUOTES):
        lines.append(line)
        line = read(MORE)
    lines.append(line.rstrip().removesuffix(QUOTES))
    return "\n".join(lines[1:] if not lines[0] and len(lines) > 1 else lines)


def line_editing() -> None:
    """Arrow keys and a history in `input`, where Python has readline and a person is typing."""
    if sys.stdin.isatty():
        try:
            import readline
        except ImportError:  # Windows' consoles edit lines themselves
            return
        readline.set_history_length(1000)

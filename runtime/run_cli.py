"""The `webgpu-run` command: generate from an artifact, streaming.

Exit codes: 0; 2 for what the user can mend (one sentence on stderr says what); 130 when interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from .errors import RuntimeFailure
from .inspect_tables import printable
from .run_options import EXAMPLES, OPTIONS, SectionOption, options_from

BROKEN_PIPE, USAGE, INTERRUPTED = 1, 2, 130


class RunCommand(click.Command):
    """Whatever happens ends in an exit code, and at most one sentence on stderr. Options have sections."""

    def main(  # type: ignore[override]  # it never returns, whatever standalone_mode says
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal may know ASCII only
                stream.reconfigure(errors="replace")
        extra["standalone_mode"] = False
        sys.exit(self._exit_code(args, prog_name or "webgpu-run", extra))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            section = parameter.section if isinstance(parameter, SectionOption) else "Help"
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(section, []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)

    def _exit_code(self, args: Sequence[str] | None, prog_name: str, extra: dict[str, Any]) -> int:
        try:
            code = super().main(args, prog_name, **extra)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except RuntimeFailure as error:
            return _say(str(error), USAGE)
        except click.UsageError as error:
            return _say(usage_sentence(error), USAGE)
        except BrokenPipeError:  # the reader of our output has left: nothing more to say, not even at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            return INTERRUPTED


@click.command(
    cls=RunCommand,
    params=[click.Argument(["folder"]), *OPTIONS],
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def main(**values: Any) -> int:
    """Generate text from the artifact in FOLDER, which webgpu-compile wrote.

    Without a prompt it asks for one: lines are edited as in a shell, and three double quotes begin and end
    a text of several lines. A model with a chat template answers, another goes on from the text. Ctrl-C
    stops the generation.
    """
    from .run_once import run

    warnings.showwarning = _show_warning
    return run(options_from(values))


def usage_sentence(error: click.UsageError) -> str:
    """Click's complaint as one sentence: option, what is wrong, what to do."""
    see_help = "see webgpu-run --help"
    if isinstance(error, click.NoSuchOption):
        close = " or ".join(error.possibilities or ())
        hint = f"did you mean {close}" if close else see_help
        return f"{error.option_name}: there is no such option; {hint}."
    if isinstance(error, click.MissingParameter):
        return f"FOLDER: no artifact is given; name the folder that webgpu-compile wrote, or {see_help}."
    message = error.message.rstrip(".")
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{error.param.opts[-1]}: {message}; {see_help}."
    return f"{message[:1].lower()}{message[1:]}; {see_help}."


def _say(sentence: str, code: int) -> int:
    click.echo(f"error: {printable(sentence, keep=chr(10))}", err=True)
    return code


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


if __name__ == "__main__":
    main()

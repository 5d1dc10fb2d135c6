"""The `webgpu-compile` command.

Exit codes: 0; 2 for what the user can mend (one sentence on stderr says what); 130 and 143 when interrupted;
1 for a bug of ours.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from .errors import CompileError, printable
from .options import (
    ACTIVATION_FORMS,
    ATTENTION_DISPATCH_FORMS,
    SEQUENCE_LENGTH_FORMS,
    STAGES,
    CompileOptions,
)
from .target import DEFAULT_TARGETS, TARGETS

BUG, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
MAX_SIZE = 2**31 - 1
DEFAULTS = {field.name: field.default for field in fields(CompileOptions)}


def sizes(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    """('height=224', 'width=224')  =>  {'height': 224, 'width': 224}"""
    dims: dict[str, int] = {}
    for value in values:
        # Symbolic names may hold '=' themselves ("n=2*m"), so the size is what follows the last one.
        name, _equals, digits = value.rpartition("=")
        size = _whole_number(digits)
        if not name or size is None:
            raise click.BadParameter(
                f"{value!r} is not NAME=SIZE with a positive size, as in --dim height=224"
            )
        if dims.setdefault(name, size) != size:
            raise click.BadParameter(f"{name!r} is given as {dims[name]} and as {size}, give it once")
    return dims


def chunks(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    """'128,16'  =>  (16, 128)"""
    found = [_whole_number(part.strip()) for part in value.split(",")]
    if None in found:
        raise click.BadParameter(f"{value!r} is not a list of sizes, as in --prefill-chunks 16,128")
    return tuple(sorted({size for size in found if size is not None}))


def names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    """'portable,subgroups'  =>  ('portable', 'subgroups')"""
    return tuple(dict.fromkeys(part.strip() for part in value.split(",")))


def _whole_number(text: str) -> int | None:
    short = text.isascii() and text.isdigit() and len(text) <= 10
    return int(text) if short and 0 < int(text) <= MAX_SIZE else None


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to write; replaced if webgpu-compile wrote it. Not needed with --check and --stop-after.",
)
@click.option(
    "--max-length",
    type=int,
    metavar="N",
    help="Capacity of the KV cache in tokens.  [default: the model's context, at most 4096]",
)
@click.option(
    "--dim",
    "dims",
    multiple=True,
    callback=sizes,
    metavar="NAME=SIZE",
    help="Bind a symbolic dimension of an input; repeatable.",
)
@click.option(
    "--batch",
    type=int,
    default=1,
    metavar="N",
    help="Sequences at a time; only 1 for now.  [default: 1]",
)
@click.option(
    "--prefill-chunks",
    callback=chunks,
    default=",".join(map(str, CompileOptions().prefill_chunks)),
    metavar="N,N,…",
    show_default=True,
    help="Sizes of prompt chunks. Each is a program of its own; a prompt of any length runs as several.",
)
@click.option(
    "--variants",
    callback=names,
    default=",".join(DEFAULT_TARGETS),
    metavar="NAME,…",
    show_default=True,
    help=f"Shader sets to emit, of {', '.join(TARGETS)}. The runtime takes the best that the GPU can run.",
)
@click.option(
    "--activations",
    type=click.Choice(ACTIVATION_FORMS),
    default=DEFAULTS["activations"],
    show_default=True,
    help="Arithmetic of 4-bit layers: auto takes int8 where the model's accuracy_level allows it.",
)
@click.option(
    "--sequence-length",
    type=click.Choice(SEQUENCE_LENGTH_FORMS),
    default=DEFAULTS["sequence_length"],
    show_default=True,
    help="Who keeps the sequence length. host waits for every token: for comparison only.",
)
@click.option(
    "--attention-dispatch",
    type=click.Choice(ATTENTION_DISPATCH_FORMS),
    default=DEFAULTS["attention_dispatch"],
    show_default=True,
    help="Grid of decode attention: the worst case, left early, or one that the GPU writes.",
)
@click.option(
    "--disable-pass",
    "disable_passes",
    multiple=True,
    metavar="NAME",
    help="Leave out a fusion, such as fuse_qkv_attention; repeatable. The answers stay the same.",
)
@click.option(
    "--tune",
    is_flag=True,
    help="Measure kernel shapes on this machine's GPU, and add a variant with the best for GPUs like it.",
)
@click.option("--check", is_flag=True, help="Say whether the model compiles, and to what. Reads no weights.")
@click.option(
    "--dump",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write every stage to DIR: the graph as ONNX after each pass, then kernels and plan as text.",
)
@click.option(
    "--stop-after",
    type=click.Choice(STAGES),
    metavar="STAGE",
    help=f"Stop after a stage: {', '.join(STAGES)}.",
)
@click.option("--quiet", "-q", is_flag=True, help="Errors only.")
@click.version_option(package_name="webgpu-compile")
def command(model: Path, out: Path | None, **options: Any) -> None:
    """Compile an ONNX MODEL (a file, or a model folder) to a standalone WebGPU program.

    \b
      webgpu-compile model/ -o out/              compile
      webgpu-run out/ --prompt "Once upon"       generate
      webgpu-inspect out/                        see what was emitted, and why

    DIR receives readable WGSL, a static dispatch schedule and packed weights. What other runtimes
    fetch to the host, the sequence length above all, stays on the GPU.

    \b
      webgpu-compile model/ --check              does it compile? takes seconds
      webgpu-compile model/ --dump stages/       see the graph after every pass
      webgpu-compile net.onnx -o out/ --dim height=224 --dim width=224
                                                 sizes of symbolic dimensions
    """
    compile_model(model, out, CompileOptions(**options))


def compile_model(model: Path, out: Path | None, options: CompileOptions) -> None:
    """Compile with progress on a terminal, and say what it came to.

    Raises:
        CompileError: one sentence for the user.
    """
    # Imported here: `--help` and usage errors need not wait for onnx.
    from .pipeline import run_pipeline
    from .progress import observer_for
    from .summary import print_summary

    with observer_for(sys.stderr, options.quiet) as observer:
        result = run_pipeline(model, out, options, observer)
    if not options.quiet:
        print_summary(result, sys.stdout)


def main(args: Sequence[str] | None = None, prog_name: str = "webgpu-compile") -> NoReturn:
    """The entry point: whatever happens ends in an exit code, and at most one sentence on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal may know ASCII only, a path any byte
            stream.reconfigure(errors="replace")
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(_exit_code(lambda: command.main(args, prog_name, standalone_mode=False)))
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def _exit_code(run: Callable[[], object]) -> int:
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except CompileError as error:
        return _say(str(error), USAGE)
    except click.UsageError as error:
        return _say(usage_sentence(error), USAGE)
    except BrokenPipeError:  # the reader of our output has left: nothing more to say, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BUG
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else "a file"
        return _say(f"{named}: {error.strerror or error}; check the path and its permissions.", USAGE)
    except MemoryError:
        return _say(
            "memory: there is not enough of it; close other programs, or use a larger machine.", USAGE
        )
    except (KeyboardInterrupt, click.Abort):
        return _say("interrupted; nothing was written.", INTERRUPTED, "")
    except Exception as error:
        where = f"{type(error).__name__}: {error}".rstrip(":. ")
        hint = "report it with the model; webgpu_compile.compile() in Python shows the traceback"
        return _say(f"webgpu-compile has a bug ({where}); {hint}.", BUG)


def usage_sentence(error: click.UsageError) -> str:
    """Click's complaint as one sentence: option, what is wrong, what to do."""
    see_help = "see webgpu-compile --help"
    if isinstance(error, click.NoSuchOption):
        close = " or ".join(error.possibilities or ())
        return (
            f"{error.option_name}: there is no such option; {f'did you mean {close}' if close else see_help}."
        )
    if isinstance(error, click.MissingParameter):
        return f"MODEL: no model is given; name a .onnx file or a model folder, or {see_help}."
    message = error.format_message().rstrip(".")
    if isinstance(error, click.BadParameter):
        parameter = error.param.opts[-1] if error.param is not None else "an option"
        return f"{parameter}: {error.message.rstrip('.')}; {see_help}."
    return f"{message[:1].lower()}{message[1:]}; {see_help}."


def _say(sentence: str, code: int, prefix: str = "error: ") -> int:
    click.echo(prefix + printable(sentence), err=True)
    return code


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds like Ctrl-C, so that what was half written is removed."""
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    main()

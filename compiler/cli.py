"""The `webgpu-compile` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .errors import CompileError
from .options import STAGES, CompileOptions
from .target import DEFAULT_TARGETS, TARGETS


def _dims(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    dims = {}
    for value in values:
        name, equals, size = value.partition("=")
        if not (name and equals and size.isdecimal() and int(size) > 0):
            raise click.BadParameter(f"{value!r} is not NAME=SIZE with a positive size, as in --dim height=224")
        dims[name] = int(size)
    return dims


def _chunks(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of sizes, as in --prefill-chunks 16,128") from None


def _names(choices: tuple[str, ...], what: str) -> Any:
    def parse(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        names = tuple(value.split(","))
        for name in names:
            if name not in choices:
                raise click.BadParameter(f"{name!r} is no {what}, choose from {', '.join(choices)}")
        return names

    return parse


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Folder to write. Required unless --check or --stop-after.")
@click.option("--max-length", type=click.IntRange(min=1), help="Capacity of the KV cache in tokens.  [default: the model's, at most 4096]")
@click.option("--dim", "dims", multiple=True, callback=_dims, metavar="NAME=SIZE", help="Bind a symbolic dimension; repeatable.")
@click.option("--batch", type=int, default=1, show_default=True, help="Sequences at a time; only 1 for now.")
@click.option("--prefill-chunks", callback=_chunks, metavar="N,N,…", help="Sizes of the prompt chunks, each a program of its own.  [default: 16,128,512]")
@click.option("--variants", callback=_names(tuple(TARGETS), "variant"), metavar="NAME,…", help=f"Shader sets to emit: {', '.join(TARGETS)}.  [default: {','.join(DEFAULT_TARGETS)}]")
@click.option("--activations", type=click.Choice(["auto", "float", "int8"]), default="auto", show_default=True, help="Arithmetic of 4-bit layers; auto takes int8 where the model's accuracy_level allows it.")
@click.option("--sequence-length", type=click.Choice(["gpu", "host"]), default="gpu", show_default=True, help="Who keeps the sequence length; host is for comparison only.")
@click.option("--attention-dispatch", type=click.Choice(["fixed", "indirect"]), default="fixed", show_default=True, help="Grid of decode attention: worst case with early exit, or read from GPU memory.")
@click.option("--disable-pass", "disable_pass", multiple=True, metavar="NAME", help="Leave out a fusion; repeatable. The answer stays the same.")
@click.option("--check", is_flag=True, help="Only say whether the model compiles, and to what; reads no weights.")
@click.option("--dump", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write every stage to DIR: ONNX models between passes, then text.")
@click.option("--stop-after", type=click.Choice(STAGES), help="Stop after a stage.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, no summary; errors only.")
@click.version_option(package_name="webgpu-compile")
def main(model: Path, out: Path | None, **options: Any) -> None:
    """Compile an ONNX MODEL (a file, or the folder of a language model) to a standalone WebGPU program.

    \b
      webgpu-compile model.onnx -o out/          compile
      webgpu-run out/ --prompt "Once upon"       generate
      webgpu-inspect out/                        see what was emitted, and why

    The folder holds readable WGSL, a static dispatch schedule and packed weights. Every value that a
    conventional runtime would fetch to the host — sequence lengths above all — stays on the GPU.

    \b
      webgpu-compile model/ --check              does it compile? (seconds, reads no weights)
      webgpu-compile model/ --dump stages/ --stop-after graph
    """
    from .pipeline import run_pipeline
    from .progress import RichObserver, SilentObserver
    from .summary import summary

    quiet = options.pop("quiet")
    if options["prefill_chunks"] is None:
        del options["prefill_chunks"]
    if options["variants"] is None:
        del options["variants"]
    console = Console(stderr=True)
    observer = SilentObserver() if quiet or not console.is_terminal else RichObserver(console)
    try:
        if out is None and not (options["check"] or options["stop_after"]):
            raise CompileError("option -o", "is missing", "give the folder to write, or --check")
        with observer:
            result = run_pipeline(model, out, CompileOptions(**options, quiet=quiet), observer)
    except CompileError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("Interrupted; nothing was written.", err=True)
        sys.exit(130)
    if not quiet:
        Console().print(summary(result))


if __name__ == "__main__":
    main()

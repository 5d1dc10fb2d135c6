"""webgpu-inspect: what was emitted, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import click
from rich.console import Console
from rich.syntax import Syntax

from . import inspect_tables as tables
from .artifact import open_artifact
from .errors import RuntimeFailure
from .inspect_facts import View, as_json, choose_programs, find_steps, view
from .programs import Program

PIPED_WIDTH = 160


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path())
@click.option("--program", help="Show the steps and lifetimes of a program (or 'all').")
@click.option("--node", help="Show the steps and the WGSL that implement an ONNX node (* and ? match).")
@click.option("--kernel", help="Show the steps and the WGSL of a kernel or a .wgsl file (* and ? match).")
@click.option("--variant", help="The variant to show; the first otherwise.")
@click.option("--json", "as_json_", is_flag=True, help="Write it all as JSON.")
def main(
    folder: str,
    program: str | None,
    node: str | None,
    kernel: str | None,
    variant: str | None,
    as_json_: bool,
) -> None:
    """Show what webgpu-compile wrote to FOLDER: programs, memory, variants and shaders. Needs no GPU."""
    try:
        inspect(folder, program, node, kernel, variant, as_json_)
    except RuntimeFailure as error:
        click.echo(f"error: {tables.printable(str(error), keep=chr(10))}", err=True)
        sys.exit(2)


def inspect(
    folder: str,
    program: str | None = None,
    node: str | None = None,
    kernel: str | None = None,
    variant: str | None = None,
    json_wanted: bool = False,
) -> None:
    """Print what the options ask for.

    Raises:
        RuntimeFailure: the artifact is damaged, or a name is not in it.
    """
    shown = view(open_artifact(folder), variant)
    programs = choose_programs(shown.variant, program)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED_WIDTH)
    if json_wanted:
        click.echo(json.dumps(as_json(shown, programs), indent=2))
    elif node is not None or kernel is not None:
        _show_kernels(console, shown, programs, node, kernel)
    elif program is not None:
        for name, each in programs.items():
            console.print(tables.steps(shown, name, each))
            if (lives := tables.lifetimes(shown, name)) is not None:
                console.print(lives)
    else:
        console.print(tables.overview(shown))
        names = ", ".join(shown.variant.programs)
        console.print(tables.plain(f"More: --program {names} or all; --node NAME; --kernel NAME; --json"))


def _show_kernels(
    console: Console,
    shown: View,
    programs: Mapping[str, Program],
    node: str | None,
    kernel: str | None,
) -> None:
    """The steps found, then the source of each shader among them once."""
    found = find_steps(shown, programs, node=node, kernel=kernel)
    console.print(tables.found_steps(shown, found))
    for file in dict.fromkeys(shown.manifest.shaders[item.step.shader].file for item in found):
        source = tables.printable(shown.artifact.module_source(file), keep="\n\t")
        console.print(tables.plain(f"shaders/{file}"), style="bold")
        if console.is_terminal:
            console.print(Syntax(source, "wgsl", line_numbers=True, background_color="default"))
        else:
            click.echo(source)


if __name__ == "__main__":
    main()

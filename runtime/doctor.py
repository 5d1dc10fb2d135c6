"""Is there a GPU that WebGPU can use?  `python -m webgpu_compile.runtime.doctor`

Says which adapter the runtime would take and what of the optional features it has; exit code 2 and one
sentence if there is none.
"""

from __future__ import annotations

import sys

import click

from .device import describe, request_adapter
from .errors import RuntimeFailure
from .limits import NATIVE_FEATURES


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quiet", "-q", is_flag=True, help="Only the exit code.")
def main(quiet: bool) -> None:
    """Say which GPU would run an artifact."""
    try:
        adapter = request_adapter()
    except RuntimeFailure as error:
        if not quiet:
            click.echo(f"error: {error}", err=True)
        sys.exit(2)
    if not quiet:
        features = [name for name, native in NATIVE_FEATURES.items() if native in adapter.features]
        click.echo(f"{describe(adapter)}, optional features: {', '.join(features) or 'none'}")


if __name__ == "__main__":
    main(prog_name="python -m webgpu_compile.runtime.doctor")

"""python -m webgpu_compile.models: write a decoder with random weights, or fill the weights of a skeleton."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from .companions import read_recipe
from .config import DecoderConfig, MaskForm, Precision
from .folder import fill_weights, write_decoder
from .presets import PRESETS, preset

# options that replace the preset's field of the same name; None leaves the preset's
SIZES = ("layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_size", "vocab_size")
FIELDS = {"layers": "n_layers", "heads": "n_heads", "kv_heads": "n_kv_heads", "mask_form": "mask"}


def listed(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        for name, config in PRESETS.items():
            click.echo(
                f"{name:18} {config.n_layers:3} x {config.hidden_size}, vocabulary {config.vocab_size}"
            )
        context.exit()


def size_options(command: Callable[..., None]) -> Callable[..., None]:
    for name in reversed((*SIZES, "max_positions", "sliding_window")):
        flag = "--" + name.replace("_", "-")
        command = click.option(flag, type=click.IntRange(min=1), help="Instead of the preset's.")(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=listed, help="List the presets."
)
@click.option("--preset", "name", metavar="NAME", help="The decoder to write (see --list).")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--precision", type=click.Choice([str(p) for p in Precision]), help="Weights. [default: int4]")
@click.option(
    "--io-dtype", type=click.Choice(["f16", "f32"]), help="Dtype of an int4 model's logits and cache."
)
@click.option("--graph", is_flag=True, help="The graph-capture export: --mask graph.")
@click.option(
    "--mask",
    "mask_form",
    type=click.Choice([str(m) for m in MaskForm]),
    help="Spelling of the mask's subgraph.",
)
@click.option("--block-size", type=click.Choice(["16", "32", "64", "128", "256"]), help="int4. [default: 32]")
@click.option("--symmetric/--asymmetric", default=None, help="Asymmetric int4 has a zero-points input.")
@click.option("--accuracy-level", type=click.IntRange(0, 4), help="0: float activations. [default: 4]")
@click.option("--prune-lm-head/--all-logits", default=None, help="Logits of the last position only.")
@click.option("--tied/--untied", default=None, help="Does the embedding read the LM head's matrix?")
@size_options
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--skeleton", is_flag=True, help="The graph without weights.")
@click.option("--fill", is_flag=True, help="Write the weights of the skeleton in --output.")
def main(
    name: str | None, output: Path, seed: int, skeleton: bool, fill: bool, graph: bool, **options: Any
) -> None:
    """Write a decoder ONNX model with random weights, in the form of onnxruntime-genai's exports."""
    given = {FIELDS.get(key, key): value for key, value in options.items() if value is not None}
    if graph:
        given["mask"] = MaskForm.GRAPH
    if fill == bool(name):
        raise click.UsageError("give either --preset NAME or --fill")
    if fill and (given or skeleton or seed):
        raise click.UsageError("--fill takes its options from the skeleton's recipe.json")
    try:
        with progress_bar() as progress:
            if fill:
                path = fill_weights(output, *read_recipe(output), progress=progress)
            else:
                config = configured(preset(str(name)), given)
                path = write_decoder(output, config, seed=seed, weights=not skeleton, progress=progress)
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    click.echo(path)


def configured(config: DecoderConfig, given: dict[str, Any]) -> DecoderConfig:
    """The preset with the options given; a float precision brings its own io dtype."""
    if "precision" in given:
        given["precision"] = Precision(given["precision"])
        if given["precision"] is Precision.FP32:
            given.setdefault("io_dtype", "f32")
    if "mask" in given:
        given["mask"] = MaskForm(given["mask"])
    if "block_size" in given:
        given["block_size"] = int(given["block_size"])
    return dataclasses.replace(config, **given)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Bytes of weights written, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (TextColumn("weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("weights", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


if __name__ == "__main__":
    main(prog_name="python -m webgpu_compile.models")

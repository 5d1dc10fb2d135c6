"""webgpu-bench: tokens per second as llama-bench counts them, and where the GPU's time goes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from .artifact import open_artifact
from .bench import Bench, Result, Settings, Trial, check_fits, plan
from .bench_ceilings import Ceilings, measure_ceilings
from .bench_kernels import ProgramTime, time_program
from .bench_peer import COMPARED, PEERS, Peer, agreement, side_by_side, start_peer
from .bench_report import PeerResults, Report, text
from .bench_timer import GpuTimer
from .chunks import choose_chunks
from .details import ProgramDetails, read_details
from .device import choose_variant, is_software, request_adapter
from .errors import RuntimeFailure
from .inspect_tables import printable
from .limits import NATIVE_FEATURES, granted
from .loading import load
from .programs import Variant
from .sampling_defaults import NAMES
from .sequence import Writer
from .session import TOKENS_PER_SUBMIT, Session

KERNEL_REPEATS = 5
NO_LIMIT = 2**30  # tokens at which a timed replay would stop


def lengths(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers from 0, separated by commas."""
    parts = value.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is no list of lengths such as 0,512", ctx, param)
    return tuple(int(part) for part in parts)


def settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Settings, ...]:
    """The callback of --sampling: pairs of a name of `Session.generate` and its number."""
    found = []
    for value in values:
        pairs = [part.partition("=")[::2] for part in value.split(",")]
        try:
            numbers = tuple((name, float(number)) for name, number in pairs)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not like top_p=0.9,temperature=0.8", ctx, param) from None
        unknown = [name for name, _ in pairs if name not in NAMES]
        if unknown:
            raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(NAMES)}", ctx, param)
        found.append(tuple((name, int(n) if n.is_integer() else n) for name, n in numbers))
    return tuple(found)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path())
@click.option(
    "-p", "prompts", callback=lengths, default="512", show_default=True, help="Prompt lengths to feed."
)
@click.option(
    "-n", "generated", callback=lengths, default="128", show_default=True, help="Tokens to generate."
)
@click.option(
    "-d", "depths", callback=lengths, default="0", show_default=True, help="Tokens in the cache before."
)
@click.option(
    "--sampling",
    "samplings",
    callback=settings,
    multiple=True,
    metavar="NAME=NUMBER,...",
    help="Generate by sampling too, as with top_k=50,temperature=0.8; may be given more than once.",
)
@click.option("-r", "repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Repetitions.")
@click.option(
    "-o",
    "form",
    type=click.Choice(["md", "csv", "json", "jsonl"]),
    default="md",
    show_default=True,
    help="Output; csv and jsonl have the tests only.",
)
@click.option("--variant", help="Force a variant; the best that the adapter runs otherwise.")
@click.option(
    "--tokens-per-submit",
    type=click.IntRange(min=1),
    default=TOKENS_PER_SUBMIT,
    show_default=True,
    help="Tokens that the GPU makes on its own before they are read.",
)
@click.option("--kernels/--no-kernels", default=True, help="Time every kernel by GPU timestamps.")
@click.option(
    "--peer", type=click.Choice(list(PEERS)), help="Run --model by another runtime too, turn by turn."
)
@click.option("--model", type=click.Path(), help="The ONNX model that was compiled, for --peer.")
def main(folder: str, form: str, **options: Any) -> None:
    """Benchmark the language model in FOLDER: prompts (pp) and generation (tg), in tokens per second.

    With GPU timestamps also the time of each kernel, against the ceilings of this device, and the host's
    time to encode a replay.
    """
    try:
        click.echo(text(run(folder, **options), form), nl=False)
    except RuntimeFailure as error:
        click.echo(f"error: {printable(str(error), keep=chr(10))}", err=True)
        sys.exit(2)


def run(
    folder: str,
    prompts: tuple[int, ...],
    generated: tuple[int, ...],
    depths: tuple[int, ...],
    repeats: int,
    variant: str | None,
    tokens_per_submit: int,
    kernels: bool,
    peer: str | None = None,
    model: str | None = None,
    samplings: Sequence[Settings] = (),
) -> Report:
    """Load the artifact on a device of its own and measure.

    Raises:
        RuntimeFailure: the artifact, the adapter or the peer cannot be used, or a test does not fit.
    """
    if (peer is None) != (model is None):
        raise RuntimeFailure("--peer and --model", "go together", "give both or none")
    if peer is not None and samplings:
        raise RuntimeFailure("--sampling", "cannot be compared: the peer is greedy", "leave out one of them")
    artifact = open_artifact(folder)
    manifest = artifact.manifest
    if manifest.sequence is None:
        raise RuntimeFailure(f"{folder}", "is no language model", "webgpu-bench measures tokens per second")
    tests = plan(prompts, generated, depths, samplings)
    check_fits(tests, manifest.sequence.capacity)
    adapter = request_adapter()
    chosen, _ = choose_variant(artifact.variants, adapter, variant)
    timestamps = kernels and "timestamp-query" in adapter.features
    device = _device(adapter, chosen, timestamps)
    try:
        with load(folder, variant=chosen.name, device=device) as session:
            bench = Bench(session, manifest.sequence.vocab_size, tokens_per_submit)
            theirs = None
            if peer is None or model is None:
                results = [bench.run(test, repeats) for test in tests]
            else:
                with start_peer(peer, model, manifest.sequence.capacity, is_software(adapter)) as running:
                    results, theirs = _compare(bench, running, tests, repeats)
            ceilings, programs = None, []
            if timestamps:
                details = read_details(artifact)
                timer = GpuTimer(device, 512)
                ceilings = measure_ceilings(device, timer)
                programs = [
                    _time(session, bench, chosen, name, depth, timer, ceilings, details.of(chosen, name))
                    for name, depth in _programs(results, chosen)
                ]
            return Report(
                model=manifest.model.name,
                device=session.adapter_info["device"],
                driver=session.adapter_info["description"],
                backend=session.adapter_info["backend_type"],
                variant=chosen.name,
                weights_nbytes=sum(b.nbytes for b in manifest.buffers if b.kind == "weights"),
                tokens_per_submit=tokens_per_submit,
                results=results,
                ceilings=ceilings,
                programs=programs,
                peer=theirs,
            )
    finally:
        device.destroy()


def _compare(bench: Bench, peer: Peer, tests: list[Trial], repeats: int) -> tuple[list[Result], PeerResults]:
    ours, theirs = side_by_side(bench, peer, tests, repeats)
    return ours, PeerResults(peer.name, theirs, agreement(bench, peer), COMPARED)


def _device(adapter: Any, variant: Variant, timestamps: bool) -> Any:
    limits = {
        name: min(value, adapter.limits[name])
        for name, value in granted(variant).items()
        if name in adapter.limits
    }
    features = [NATIVE_FEATURES[name] for name in variant.features]
    features += ["timestamp-query"] if timestamps else []
    return adapter.request_device_sync(required_features=features, required_limits=limits)


def _programs(results: list[Result], variant: Variant) -> list[tuple[str, int]]:
    """The programs that the tests replay, each once per depth: the largest chunk of a prompt, and decode.

    Not `decode_sampled`: what its kernels take depends on the settings.
    """
    found: dict[tuple[str, int], None] = {}
    for result in results:
        if not result.test.sampling:
            found[_program_of(result.test, variant), result.test.depth] = None
    return list(found)


def _program_of(test: Trial, variant: Variant) -> str:
    if not test.n_prompt:
        return "decode"
    sizes = sorted(program.rows for name, program in variant.programs.items() if name.startswith("prefill_"))
    rows = max(choose_chunks(test.n_prompt, sizes))
    return "decode" if rows == 1 else f"prefill_{rows}"


def _time(
    session: Session,
    bench: Bench,
    variant: Variant,
    name: str,
    depth: int,
    timer: GpuTimer,
    ceilings: Ceilings,
    details: ProgramDetails,
) -> ProgramTime:
    program, resources = variant.programs[name], session._alive()
    state = session.manifest.sequence
    assert state is not None
    depth = min(depth, state.capacity - program.rows - 1)
    bench.warm_up()
    bench.go_to(depth)
    writer = Writer(
        state, resources.device.queue, resources.buffers[state.buffer], resources.buffers[state.tokens]
    )
    writer.write_tokens([0] * (depth + program.rows), depth)

    def rewind() -> None:
        writer.write_words(depth, depth + program.rows, NO_LIMIT, length=program.rows)

    return time_program(
        name,
        program,
        depth,
        details=details,
        capacity=state.capacity,
        shader_names=[shader.label for shader in session.manifest.shaders],
        resources=resources,
        timer=timer,
        ceilings=ceilings,
        rewind=rewind,
        repeats=KERNEL_REPEATS,
        per_submit=bench.tokens_per_submit if name == "decode" else 1,
    )


if __name__ == "__main__":
    main()

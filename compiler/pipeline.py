"""The compiler on one page.

    model.onnx ─import→ graph ─passes→ graph ─lower→ programs ─schedule, plan→ plan ─emit→ out/

Each stage is a function of what the one before returned; each can be dumped and stopped after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import __version__
from .emit.artifact import check_replaceable, copy_model_files, replacing, write_json, write_shaders
from .emit.details import FILE as DETAILS
from .emit.details import details
from .emit.manifest import manifest
from .emit.model import model_json, ports_json, sequence_json
from .emit.report import write_report
from .emit.schedules import Schedules
from .emit.shaders import ShaderSet, render_shaders
from .emit.shards import write_shard
from .emit.web import write_web_files
from .errors import CompileError
from .lowering import decoder_shape, lower_model, program_graphs, record_of, variants_of
from .measuring import MeasuringProcess
from .options import CompileOptions
from .passes.front import DeviceModel, front
from .passes.program import ProgramGraph
from .plan import Plan, plan
from .program import Program, Weight
from .progress import Observer, SilentObserver
from .schedule import schedule
from .target import Target
from .tuning import Tuning, tune
from .verify_plan import verify
from .weights import pack


@dataclass(frozen=True, slots=True)
class Result:
    """What a compilation came to; later stages are None when it stopped before them."""

    options: CompileOptions
    out: Path | None
    device: DeviceModel
    graphs: tuple[ProgramGraph, ...] | None = None
    programs: dict[str, tuple[Program, ...]] | None = None
    plan: Plan | None = None
    shaders: ShaderSet | None = None
    files: dict[str, int] | None = None  # bytes of every file written
    tuning: Tuning | None = None


def compile(model: str | Path, out: str | Path | None = None, **options: Any) -> Result:
    """Compile an ONNX model (a file or a model folder) into the artifact folder `out`.

    Options are those of the command line: max_length, dims={"name": size}, batch, prefill_chunks,
    variants, activations, sequence_length, attention_dispatch, disable_passes, tune, check, dump, stop_after.
    With check or stop_after nothing is written and `out` may be left out.

    Raises:
        CompileError: the model, a file or an option cannot be compiled; one sentence says why.
        TypeError: there is no such option.
    """
    folder = None if out is None else Path(out)
    return run_pipeline(Path(model), folder, CompileOptions(**options), SilentObserver())


def run_pipeline(model: Path, out: Path | None, options: CompileOptions, observer: Observer) -> Result:
    """All stages in order, or up to `options.stop_after`."""
    stop = "plan" if options.check else options.stop_after
    if out is None and stop is None:
        raise CompileError("-o", "no output folder is given", "add -o DIR, or --check to write nothing")
    if out is not None and stop in (None, "emit"):
        check_replaceable(out)  # now, not when the work is done
    observer.stage("importing and rewriting the graph")
    device = front(model, options, observer, knows=lambda node: record_of(node) is not None)
    result = Result(options, out, device)
    if stop in ("import", "placement"):
        return result
    observer.stage("fusing the graphs of the programs")
    graphs = program_graphs(device, options)
    # In the report the first program, one token, stands for all: it has every fusion.
    counts = replace(device.counts, passes=(*device.counts.passes, *graphs[0].passes))
    device = replace(device, counts=counts)
    result = replace(result, device=device, graphs=graphs)
    if stop == "graph":
        return result

    targets = {target.name: target for target in variants_of(options)}
    if options.tune:
        observer.stage("looking at the GPU")
        tuning = _tune(device, graphs, options, tuple(targets.values()), observer)
        result = replace(result, tuning=tuning)
        targets = {tuning.target.name: tuning.target, **targets}

    observer.stage("lowering to kernels")
    programs = lower_model(device, graphs, options, targets.values())
    _dump(options, "lower", programs)
    result = replace(result, programs=programs)
    if stop == "lower":
        return result

    observer.stage("scheduling and planning memory")
    programs = {variant: tuple(map(schedule, each)) for variant, each in programs.items()}
    planned = plan(programs)
    verify(planned)
    _dump(options, "plan", planned)
    result = replace(result, programs=programs, plan=planned)
    if stop == "plan":
        return result

    observer.stage("emitting WGSL")
    shaders = render_shaders(planned.variants, targets)
    result = replace(result, shaders=shaders)
    if out is None:
        return result
    files = _emit(device, planned, shaders, out, observer, options)
    return replace(result, files=files)


def _tune(
    device: DeviceModel,
    graphs: tuple[ProgramGraph, ...],
    options: CompileOptions,
    targets: tuple[Target, ...],
    observer: Observer,
) -> Tuning:
    """Kernel shapes for this machine's GPU, by what a token takes (or a run, of a model without state)."""
    capacity = decoder_shape(device, options).capacity if device.interface.is_decoder else 1

    def lower(target: Target) -> tuple[Program, ...]:
        return lower_model(device, graphs, options, [target], only="decode")[target.name]

    with MeasuringProcess() as measurer:
        return tune(measurer, lower, targets, capacity, observer.trials)


def _emit(
    device: DeviceModel,
    planned: Plan,
    shaders: ShaderSet,
    out: Path,
    observer: Observer,
    options: CompileOptions,
) -> dict[str, int]:
    def packed(weight: Weight) -> Any:
        return pack(weight, {s.initializer: device.array(s.initializer) for s in weight.sources})

    with replacing(out) as folder:
        write_shaders(folder, shaders)
        observer.weights(sum(w.tensor.nbytes for shard in planned.shards for w in shard))
        (folder / "weights").mkdir()
        shards = [
            write_shard(folder / "weights" / f"weights-{i:04}.safetensors", shard, packed, observer.advance)
            for i, shard in enumerate(planned.shards)
        ]
        producer = f"webgpu-compile {__version__}"
        copied = copy_model_files(device.folder, folder)
        copied |= write_web_files(folder, decoder=device.interface.is_decoder)
        copied |= write_report(folder, device, planned, shaders, options, producer)
        schedules = Schedules(planned, shaders, lambda program: ports_json(device, program))
        sequence = sequence_json(device, planned, options)
        capacity = sequence["capacity"] if sequence else 0
        copied |= write_json(folder, DETAILS, details(device, planned, schedules, capacity))
        model = model_json(device)
        document = manifest(planned, schedules, shaders, shards, model, sequence, copied, producer)
        write_json(folder, "manifest.json", document)
        return {
            str(file.relative_to(folder)): file.stat().st_size
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }


def _dump(options: CompileOptions, stage: str, what: Plan | dict[str, tuple[Program, ...]]) -> None:
    if options.dump is None:
        return
    texts = (
        {f"{stage}.txt": what.text()}
        if isinstance(what, Plan)
        else {f"{stage}-{v}-{p.name}.txt": p.text() for v, programs in what.items() for p in programs}
    )
    try:
        options.dump.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (options.dump / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CompileError(
            f"option --dump {str(options.dump)!r}",
            f"cannot be written: {error.strerror}",
            "give another folder",
        ) from error

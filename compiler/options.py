"""What a user can ask of the compiler, frozen: the command line and `compile()` make one of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import CompileError
from .target import DEFAULT_TARGETS, TARGETS

STAGES = ("import", "placement", "graph", "lower", "plan", "emit")
ACTIVATION_FORMS = ("auto", "float", "int8")
SEQUENCE_LENGTH_FORMS = ("gpu", "host")
ATTENTION_DISPATCH_FORMS = ("fixed", "indirect")


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """Options of one compilation; the names are those of the command line with `_` for `-`.

    Args:
        max_length: capacity of the KV cache in positions; None takes the model's context length.
        dims: sizes for symbolic dimensions, by name (`--dim NAME=SIZE`).
        batch: rows decoded together; only 1.
        prefill_chunks: sizes of the prefill programs.
        variants: names of the shader sets to emit.
        sequence_length: `gpu` keeps total_sequence_length in GPU state, `host` copies it to the host
            for every token, which is for comparison only.
        attention_dispatch: `fixed` worst-case grids, or `indirect` ones written by the KV append.
        activations: arithmetic of 4-bit layers; `auto` takes `int8` where the model's accuracy_level is 4.
        disable_passes: fusions to leave out, by name.
        tune: measure kernel shapes on this machine's GPU, and add a variant with the best.
        check: do everything but read weights; the external data file may be missing.
        dump: folder that receives every stage.
        stop_after: last stage to run, by name.
        quiet: no progress and no summary.
    """

    max_length: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    batch: int = 1
    prefill_chunks: tuple[int, ...] = (16, 128, 512)
    variants: tuple[str, ...] = DEFAULT_TARGETS
    sequence_length: str = "gpu"
    attention_dispatch: str = "fixed"
    activations: str = "auto"
    disable_passes: tuple[str, ...] = ()
    tune: bool = False
    check: bool = False
    dump: Path | None = None
    stop_after: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no model could be compiled with.

        Raises:
            CompileError: naming the option.
        """
        if self.dump is not None:  # `compile()` takes text as well
            object.__setattr__(self, "dump", Path(self.dump))
        if self.batch != 1:
            raise CompileError("--batch", f"{self.batch} rows at once are not supported", "use --batch 1")
        if isinstance(self.variants, str) or isinstance(self.disable_passes, str):
            raise CompileError("--variants, --disable-pass", "a text was given", "give a tuple of names")
        if not self.variants:
            raise CompileError("--variants", "none is given", f"choose from {', '.join(TARGETS)}")
        for variant in self.variants:
            _one_of("--variants", variant, tuple(TARGETS))
        if self.stop_after is not None:
            _one_of("--stop-after", self.stop_after, STAGES)
        _one_of("--sequence-length", self.sequence_length, SEQUENCE_LENGTH_FORMS)
        _one_of("--attention-dispatch", self.attention_dispatch, ATTENTION_DISPATCH_FORMS)
        _one_of("--activations", self.activations, ACTIVATION_FORMS)
        if self.max_length is not None and self.max_length < 2:
            problem = f"{self.max_length} is too short for a prompt token and one that follows"
            raise CompileError("--max-length", problem, "give at least 2")
        for name, size in self.dims.items():
            if size < 1:
                raise CompileError(f"--dim {name}", f"{size} is no size", "give a positive number")
        if not self.prefill_chunks or any(size < 2 for size in self.prefill_chunks):
            problem = f"{','.join(map(str, self.prefill_chunks)) or 'nothing'} is no list of chunk sizes"
            raise CompileError("--prefill-chunks", problem, "give sizes of at least 2, as in 16,128")


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise CompileError(option, f"{value!r} is not a choice", f"use one of {', '.join(allowed)}")

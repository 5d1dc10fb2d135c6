"""report.html: what happened to the model, with pictures, on one page that needs nothing else.

No script, no network, no file beside it; no date and no path, so that the same input gives the same bytes.
Model text is data: autoescaped, and rid of characters that a browser would act on.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from ..options import CompileOptions
from ..passes.front import DeviceModel
from ..plan import Plan, ProgramPlan
from .model import model_json
from .report_cost import kernel_costs, total
from .report_figures import lifetime_chart, memory_bar, program_strips
from .report_format import KINDS, count, harmless, kind_of, plural, rate, share, size
from .report_head import BANDWIDTHS, TERAOPS, facts, pass_rows, roofline, variant_rows
from .report_programs import program_tables
from .report_wgsl import families
from .shaders import ShaderSet

FILE = "report.html"
DEPTH = 1024
"""Positions in the KV cache that pictures and tables of bytes assume, or the capacity if that is less."""


def write_report(
    folder: Path, device: DeviceModel, plan: Plan, shaders: ShaderSet, options: CompileOptions, producer: str
) -> dict[str, str]:
    """Write report.html into `folder`; returns its SHA-256 by name, for the manifest's `files`."""
    data = render_report(device, plan, shaders, options, producer).encode()
    (folder / FILE).write_bytes(data)
    return {FILE: hashlib.sha256(data).hexdigest()}


def render_report(
    device: DeviceModel, plan: Plan, shaders: ShaderSet, options: CompileOptions, producer: str
) -> str:
    """The page. Pictures are of the first variant: schedules of the others differ in shaders, if at all."""
    programs = next(iter(plan.variants.values()))
    caches = frozenset(name for cache in device.interface.caches for name in (cache.past, cache.present))
    cache_nbytes = sum(buffer.nbytes for buffer in plan.buffers if buffer.name in caches)
    capacity = _capacity(programs)
    depth = min(DEPTH, capacity)
    n_layers = len(device.interface.caches) // 2
    main = programs[0]
    changed, idle = pass_rows(device.counts)
    style = _style()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            style=style,
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            producer=producer,
            model=model_json(device),
            counts=device.counts,
            facts=facts(device, plan, options),
            capacity=capacity,
            depth=depth,
            n_dispatches=len(main.program.kernels),
            main=main.program,
            main_cost=total(kernel_costs(main.program, depth)),
            variants=variant_rows(plan, shaders),
            files=shaders.files,
            passes=changed,
            idle_passes=idle,
            strips=program_strips(main, depth, n_layers),
            used_kinds={kind_of(kernel.name, kernel.template) for kernel in main.program.kernels},
            memory=memory_bar(plan, caches),
            position_nbytes=cache_nbytes // capacity if capacity else 0,
            charts=[lifetime_chart(plan, planned) for planned in _charted(programs)],
            roofline=roofline(programs, capacity),
            tables=program_tables(plan, shaders, n_layers, depth),
            families=families(plan, shaders),
            several_variants=len(plan.variants) > 1,
        )
    )


def _capacity(programs: tuple[ProgramPlan, ...]) -> int:
    """Positions of the KV cache; 0 for a model without."""
    constants = (dict(kernel.constants) for each in programs for kernel in each.program.kernels)
    found = (value for each in constants if isinstance(value := each.get("capacity"), int))
    return next(found, 0)


def _charted(programs: tuple[ProgramPlan, ...]) -> list[ProgramPlan]:
    """The programs whose memory is drawn: one token, and the largest chunk of a prompt."""
    chunks = [each for each in programs if each.program.name.startswith("prefill_")]
    return [each for each in (*programs[:1], *chunks[-1:]) if each.lifetimes]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "size": size,
        "count": count,
        "rate": rate,
        "share": share,
        "plural": plural,
        "unit": lambda x: f"{x:.2f}".rstrip("0").rstrip("."),
        "thousands": lambda n: f"{n:,}",
    }
    environment.globals |= {"kinds": KINDS, "bandwidths": BANDWIDTHS, "teraops": TERAOPS}
    return environment


@cache
def _style() -> Markup:
    return Markup(_template("report.css"))  # ours; nothing of a model is in it


def _template(name: str) -> str:
    package = files(__package__.removesuffix("compiler.emit") + "templates")
    return (package / name).read_text(encoding="utf-8")

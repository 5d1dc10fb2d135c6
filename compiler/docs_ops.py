"""Writes docs/ops.md from the registered lowerings.

python -m webgpu_compile.compiler.docs_ops > docs/ops.md
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx.defs

from .importer.load import MAX_OPSET, MIN_OPSET
from .lowering import builder
from .lowering.builder import OpRecord

INTRODUCTION = f"""# Operators

Written by `python -m webgpu_compile.compiler.docs_ops` from the lowerings themselves. Standard operators are
those of opset {MIN_OPSET} to {MAX_OPSET}; the numbers are the versions of the operator's definition.
[Adding an operator](adding-an-op.md) takes one function, one template and one test.

An ONNX element type has one form on the GPU: """

VANISHING = """
## Operators that are gone before

The passes leave none of these in the graph, so they need no kernel:

* **whatever depends on constants only**, of any operator that onnx's reference implementation knows;
* **`Shape` and the arithmetic behind it**, once `--dim` has bound the dimensions;
* **sequence lengths**: whatever leads from `attention_mask` to `seqlens_k` and `total_sequence_length` of
  GroupQueryAttention, in the spellings that exporters use;
* **`If`** between two rope tables on the sequence length (LongRoPE): the kernel chooses;
* **`MemcpyToHost`, `MemcpyFromHost`**, of models that ONNX Runtime saved after optimisation;
* **model-local functions**, which are inlined.

Anything else is an error that names the node, the reason and what to do.
"""


def page() -> str:
    """The whole page."""
    records = sorted(builder.OPS.values(), key=lambda record: record.op_type.lower())
    by_domain = {domain: [r for r in records if r.domain == domain] for domain in {r.domain for r in records}}
    storage = {onnx_type: str(gpu) for onnx_type, gpu in builder.STORAGE.items()}
    forms = ", ".join(f"{onnx_type} is {gpu}" for onnx_type, gpu in storage.items() if onnx_type != gpu)
    parts = [
        INTRODUCTION + forms + ".\nfloat16 weights stay f16. int64 is narrowed with a proof, or refused.\n",
        "## ONNX\n",
        _table(by_domain.pop("")),
        "## com.microsoft\n",
        _table(by_domain.pop("com.microsoft")),
        "## Made by the compiler\n\nFusions, as model-local functions of the domain `webgpu_compile`. "
        "A model need not have them.\n",
        _table(by_domain.pop("webgpu_compile")),
    ]
    assert not by_domain, f"docs/ops.md has no section for {sorted(by_domain)}"
    return "\n".join(parts) + VANISHING


def _table(records: Iterable[OpRecord]) -> str:
    lines = ["| operator | versions | element types | limits | what it does |", "|---|---|---|---|---|"]
    for record in records:
        limits = record.limits.replace("made by the compiler", "")
        cells = (f"`{record.op_type}`", versions(record), record.dtypes, limits, description(record))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def versions(record: OpRecord) -> str:
    """The versions of the operator's definition that models of the supported opsets can mean."""
    if record.domain:
        return "1"
    since = sorted(
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == record.op_type and schema.domain == "" and schema.since_version <= MAX_OPSET
    )
    if not since:  # exporters write it into the standard's domain, which does not have it
        return "ONNX Runtime's"
    current = max((version for version in since if version <= MIN_OPSET), default=0)
    return ", ".join(str(version) for version in since if version >= current)


def description(record: OpRecord) -> str:
    """The first paragraph of the lowering's docstring, in one line."""
    text = record.function.__doc__ or ""
    return " ".join(text.partition("\n\n")[0].split())


if __name__ == "__main__":
    print(page(), end="")

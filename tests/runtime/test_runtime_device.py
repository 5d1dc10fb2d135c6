"""Adapters, variants and limits; and what a replay costs is in replay_cost.py."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest
import wgpu
from toy_artifact import build_decoder, greedy
from webgpu_compile.runtime import RuntimeFailure, load
from webgpu_compile.runtime.device import choose_variant, request_adapter, request_device
from webgpu_compile.runtime.limits import DEFAULTS
from webgpu_compile.runtime.programs import Variant
from webgpu_compile.runtime.schema import Adapter
from webgpu_compile.runtime.shaders import check_source, excerpt, for_naga

FAST = {
    "name": "fast",
    "features": ["shader-f16", "subgroups"],
    "limits": {"max-storage-buffers-per-shader-stage": 10},
}
PORTABLE = {"name": "portable", "features": [], "limits": {}}


class FakeAdapter:
    """An adapter with chosen features and limits."""

    def __init__(self, features=(), limits=(), adapter_type="DiscreteGPU"):
        self.info = {"device": "toy", "backend_type": "Vulkan", "adapter_type": adapter_type}
        self.features = set(features)
        self.limits = {**DEFAULTS, **dict(limits)}


def variants():
    return [Variant(**FAST, programs={}), Variant(**PORTABLE, programs={})]


def test_the_first_variant_that_runs_is_taken():
    able = FakeAdapter(["shader-f16", "subgroup"], {"max-storage-buffers-per-shader-stage": 10})
    chosen, reason = choose_variant(variants(), able)
    assert (chosen.name, reason) == ("fast", "fast: the artifact's first choice")
    chosen, reason = choose_variant(variants(), FakeAdapter(["subgroup"]))
    assert chosen.name == "portable"
    assert reason == (
        "portable: the best that this adapter runs "
        "(fast needs shader-f16, max-storage-buffers-per-shader-stage (needs 10, has 8))"
    )
    assert choose_variant(variants(), able, "portable")[1] == "portable: asked for"


def test_software_gpus_get_what_was_made_for_them():
    """First where a CPU plays the GPU, last elsewhere, and anywhere when asked for."""
    software = Variant(name="software", features=[], limits={}, programs={}, software=True)
    made = [*variants(), software]
    played = FakeAdapter(["shader-f16", "subgroup"], adapter_type="CPU")
    chosen, reason = choose_variant(made, played)
    assert (chosen, reason) == (software, "software: made for GPUs that a CPU plays")
    assert choose_variant(made, played, "portable")[1] == "portable: asked for"
    assert choose_variant(variants(), played)[0].name == "portable"
    assert choose_variant(made, FakeAdapter())[0].name == "portable"
    assert choose_variant(made, FakeAdapter(), "software")[1] == "software: asked for"
    assert choose_variant([software], FakeAdapter())[0] is software
    played.info["vendor_id"] = 0x10005
    tuned = Variant(name="tuned", features=[], limits={}, programs={}, adapter=Adapter("mesa"))
    assert choose_variant([tuned, *made], played)[0] is tuned


def test_no_variant_runs():
    with pytest.raises(RuntimeFailure) as caught:
        choose_variant(variants()[:1], FakeAdapter(["shader-f16", "subgroup"]))
    assert str(caught.value) == (
        "adapter toy (Vulkan): cannot run it: fast needs max-storage-buffers-per-shader-stage "
        "(needs 10, has 8); "
        "compile with --variants portable, or use another GPU."
    )


def test_an_adapter_below_the_defaults_is_refused():
    with pytest.raises(RuntimeFailure, match=r"max-buffer-size \(needs 268435456, has 1000\)"):
        choose_variant(variants(), FakeAdapter(limits={"max-buffer-size": 1000}))


def test_an_adapter_below_the_defaults_runs_what_needs_less():
    modest = Variant(name="modest", features=[], limits={"max-buffer-size": 1000}, programs={})
    assert choose_variant([modest], FakeAdapter(limits={"max-buffer-size": 1000}))[0] is modest
    with pytest.raises(RuntimeFailure, match=r"max-buffer-size \(needs 1000, has 999\)"):
        choose_variant([modest], FakeAdapter(limits={"max-buffer-size": 999}))


def test_a_forced_variant_that_cannot_run_or_does_not_exist(tmp_path, monkeypatch):
    folder = build_decoder(tmp_path / "out", variants=[FAST, PORTABLE])
    adapter = request_adapter()
    monkeypatch.setattr(adapter, "_features", set())
    with pytest.raises(RuntimeFailure, match="cannot run it: fast needs shader-f16, subgroups"):
        load(folder, variant="fast", adapter=adapter)
    with pytest.raises(
        RuntimeFailure, match="variant 'best': is not in this artifact; choose from fast, portable"
    ):
        load(folder, variant="best", adapter=adapter)
    with load(folder, adapter=adapter) as session:
        assert session.variant == "portable"
        assert "fast needs shader-f16, subgroups" in session.variant_reason


def test_the_device_has_what_the_variant_needs_and_no_more():
    adapter = request_adapter()
    variant = variants()[0]
    device = request_device(adapter, variant)
    assert {"shader-f16", "subgroup"} == set(device.features)
    assert device.limits["max-storage-buffers-per-shader-stage"] == 10
    assert device.limits["max-compute-workgroup-storage-size"] == 16384
    assert device.limits["max-buffer-size"] == 256 << 20
    device.destroy()


def test_a_device_can_be_shared(tmp_path):
    device = request_device(request_adapter(), variants()[1])
    folder = build_decoder(tmp_path / "out", variants=[FAST, PORTABLE])
    for _ in range(2):  # close leaves the device alone
        with load(folder, device=device) as session:
            assert session.variant == "portable"  # the adapter could do more; this device cannot
            assert list(session.generate([1, 2], 5)) == greedy([1, 2], 5, 53)
    with pytest.raises(RuntimeFailure, match="fast needs shader-f16"):
        load(folder, device=device, variant="fast")
    device.destroy()


def test_two_sessions_at_once(tmp_path):
    folder = build_decoder(tmp_path / "out")
    with load(folder) as one, load(folder) as two:
        pairs = list(zip(one.generate([1], 9), two.generate([2], 9), strict=True))
    assert [a for a, _ in pairs] == greedy([1], 9, 53)
    assert [b for _, b in pairs] == greedy([2], 9, 53)


def test_out_of_memory_is_a_sentence(tmp_path, monkeypatch):
    import wgpu

    folder = build_decoder(tmp_path / "out")
    device = request_device(request_adapter(), variants()[1])
    original = type(device).create_buffer

    def full(self, *, label="", size, usage, mapped_at_creation=False):
        if label == "cache":
            raise wgpu.GPUOutOfMemoryError("out of memory")
        return original(self, label=label, size=size, usage=usage, mapped_at_creation=mapped_at_creation)

    monkeypatch.setattr(type(device), "create_buffer", full)
    with pytest.raises(
        RuntimeFailure, match=r"GPU memory for 'cache': could not be had.*smaller --max-length"
    ):
        load(folder, device=device)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def test_no_adapter_says_how_to_get_one(tmp_path):
    folder = build_decoder(tmp_path / "out")
    code = f"""
from webgpu_compile.runtime import RuntimeFailure, load
try:
    load({str(folder)!r})
except RuntimeFailure as error:
    print(error)
"""
    done = run_python(code, VK_DRIVER_FILES="/nonexistent.json", VK_ICD_FILENAMES="/nonexistent.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("WebGPU: no adapter was found; install the GPU's Vulkan driver")
    assert "mesa-vulkan-drivers" in done.stdout


def test_the_runtime_needs_no_compiler_libraries(tmp_path):
    folder = build_decoder(tmp_path / "out")
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["onnx", "onnx_graphsurgeon", "jinja2", "networkx"]))
import webgpu_compile
with webgpu_compile.load({str(folder)!r}) as session:
    print(list(session.generate([1, 2], 5)))
print(any(name.startswith("webgpu_compile.compiler") for name in sys.modules))
"""
    done = run_python(code)
    assert done.stdout == f"{greedy([1, 2], 5, 53)}\nFalse\n", done.stderr


def test_importing_the_schema_needs_no_gpu_library():
    done = run_python(
        "import sys, webgpu_compile.runtime.schema as s; print('wgpu' in sys.modules, 'numpy' in sys.modules)"
    )
    assert done.stdout == "False False\n"


def test_subgroup_line_is_blanked_for_naga():
    source = "enable f16;\nenable subgroups;\n// enable subgroups;\nfn f() {}\n"
    assert for_naga(source) == "enable f16;\n\n// enable subgroups;\nfn f() {}\n"


def test_sources_of_usual_size_pass_the_bounds():
    check_source("a.wgsl", "// ((((" * 500 + "\nfn f() { let x = 1; }\n" * 2000 + "/*" + "(" * 500 + "*/")


def test_excerpt_shows_the_place():
    source = "a\nb\nc\nd\ne\nf"
    message = "Shader validation error: no\n  ┌─ wgsl:4:2\n"
    assert excerpt(source, message) == "     2 | b\n     3 | c\n>    4 | d\n     5 | e\n     6 | f"
    assert excerpt(source, "something else") == "something else"


def test_nothing_stays_behind_a_closed_session(tmp_path):
    """wgpu-native keeps a device alive for every command buffer that was finished and not submitted."""

    def native_objects():
        gc.collect()
        counts = wgpu.diagnostics.wgpu_native_counts.get_dict()
        return {name: counts[name]["count"] for name in counts if name != "total"}

    folder = build_decoder(tmp_path / "out")
    before = native_objects()
    with load(folder) as session:
        assert len(list(session.generate([1, 2], 3))) == 3
        next(session.generate([5], 3))
        assert native_objects()["Device"] == before["Device"] + 1
    del session
    assert native_objects() == before

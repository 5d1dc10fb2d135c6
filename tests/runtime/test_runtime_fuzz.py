"""Random changes to a manifest: load and run end with a result or a sentence, never with an abort.

Runs in a process of its own, because wgpu-native would take the tests with it.
"""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from toy_artifact import build_decoder, build_graph
from webgpu_compile.runtime import RuntimeFailure, load
from webgpu_compile.runtime.device import request_adapter

N_CHANGES = 80
NUMBERS = [0, 1, 2, 3, 4, 5, 8, 16, 64, 256, 640, 4096, 65535, 65536, 2**20, 2**31, 2**32, 2**53, -1]


def test_no_manifest_aborts_the_process(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    last = (tmp_path / "last").read_text()
    assert done.returncode == 0, f"after {last}:\n{done.stderr}"
    ran, refused = map(int, done.stdout.split())
    assert ran > 0
    assert refused > N_CHANGES // 2


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))
    if path:
        yield path


def change(rng: random.Random, document: dict[str, Any]) -> str:
    path = rng.choice(list(places(document)))
    owner = document
    for key in path[:-1]:
        owner = owner[key]
    value, dice = owner[path[-1]], rng.random()
    if isinstance(value, int) and dice < 0.8:
        owner[path[-1]] = rng.choice([*NUMBERS, value + 1, value - 1, value * 2, value + 4])
    elif isinstance(value, list) and value and dice < 0.6:
        value.reverse() if dice < 0.2 else value.pop() if dice < 0.4 else value.append(value[0])
    elif dice < 0.8:
        del owner[path[-1]]
    else:
        owner[path[-1]] = rng.choice([None, "x", 7, [], {}])
    return f"{path}: {value!r:.80}"


def main(folder: Path) -> None:
    rng = random.Random(7)
    adapter = request_adapter()
    folders = [build_decoder(folder / "a", indirect=True), build_graph(folder / "b")]
    documents = [json.loads((each / "manifest.json").read_bytes()) for each in folders]
    ran = refused = 0
    for _ in range(N_CHANGES):
        kind = rng.randrange(2)
        document = copy.deepcopy(documents[kind])
        (folder / "last").write_text(change(rng, document))
        (folders[kind] / "manifest.json").write_text(json.dumps(document))
        try:
            with load(folders[kind], adapter=adapter) as session:
                if session.capacity:
                    list(session.generate([1, 2, 3, 4, 5], 10))
                    session.run({"input_ids": [[1, 2, 3, 4, 5, 6]]}, ["logits", "present.0.key"])
                else:
                    session.run({"x": np.zeros(100, np.float16)})
                ran += 1
        except RuntimeFailure:
            refused += 1
    print(ran, refused)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

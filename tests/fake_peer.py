"""A peer as `webgpu-bench --peer` talks to one, without a model: run as a process by tests/test_bench.py.

`python fake_peer.py LOG [FAILURE]` writes what it is asked to LOG. FAILURE: "refuses" the model, or "dies"
when it is first asked for tokens.
"""

import json
import os
import sys
from pathlib import Path

log, failure = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""


def say(message: dict) -> None:
    print(json.dumps(message), flush=True)


beginning = json.loads(sys.stdin.readline())
software = os.environ.get("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "")
log.write_text(json.dumps({**beginning, "software": software}) + "\n")
if failure == "refuses":
    say({"error": "ModuleNotFoundError: No module named 'onnxruntime'"})
    sys.exit(1)
say({"name": "a fake | peer"})
for line in sys.stdin:
    if failure == "dies":
        os._exit(3)
    request = json.loads(line)
    with log.open("a") as file:
        file.write(line)
    say({"seconds": 2.0, "tokens": [0] * request["generate"]})

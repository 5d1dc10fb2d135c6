"""Artifacts from before sampling: the words of the toy decoder have none for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_artifact import build_decoder, greedy
from webgpu_compile.runtime import RuntimeFailure, load


@pytest.mark.parametrize("driven_by", ["gpu", "host"])
@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"top_p": 0.5}, {"repetition_penalty": 2}])
def test_greedy_alone(tmp_path: Path, options: dict[str, Any], driven_by: str) -> None:
    with load(build_decoder(tmp_path / "toy", driven_by=driven_by)) as session:
        with pytest.raises(RuntimeFailure, match="cannot sample with this artifact"):
            session.generate([1, 2], 5, **options)
        assert session.tokens == []
        assert list(session.generate([1, 2], 5, temperature=0, top_k=4)) == greedy([1, 2], 5, 53)

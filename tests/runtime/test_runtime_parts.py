"""The runtime's parts that need no GPU."""

from __future__ import annotations

import json
from itertools import combinations_with_replacement
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webgpu_compile.runtime import details, schema
from webgpu_compile.runtime.chunks import OVERHEAD_ROWS, choose_chunks
from webgpu_compile.runtime.sequence import contiguous

SIZES = st.lists(st.integers(2, 40), min_size=1, max_size=3, unique=True)


@given(st.integers(1, 300), SIZES)
def test_chunks_cover_all_rows_and_waste_no_replay(n, sizes):
    chunks = choose_chunks(n, sizes)
    assert set(chunks) <= {*sizes, 1}
    assert (1 in chunks) == (n == 1)
    assert sum(chunks) >= n > sum(chunks[:-1])


@given(st.integers(2, 60), st.sampled_from([[8], [8, 16], [6, 48], [5, 10, 40]]))
def test_chunks_cost_the_least(n, sizes):
    def cost(chunks):
        return sum(OVERHEAD_ROWS + chunk for chunk in chunks)

    most = -(-n // min(sizes))
    every = (c for k in range(1, most + 1) for c in combinations_with_replacement(sizes, k) if sum(c) >= n)
    assert cost(choose_chunks(n, sizes)) == min(map(cost, every))


def test_long_prompts_are_cut_fast():
    assert choose_chunks(131_072, [16, 128, 512]) == [512] * 256
    assert choose_chunks(131_073, [16, 128, 512]) == [512] * 256 + [16]


def test_contiguous_words_are_written_together():
    assert contiguous({5: 1, 4: 2, 9: 3, 0: 4}) == [(0, [4]), (4, [2, 1]), (9, [3])]


def test_json_schema_file_is_up_to_date():
    folder = Path(schema.__file__).parent
    for module, kind in (("manifest", schema.Manifest), ("details", details.Details)):
        command = "run `python -m webgpu_compile.runtime.schema` and `… .runtime.details`"
        assert (folder / f"{module}.schema.json").read_bytes() == schema.json_schema(kind), command


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a\\b", "", "a" * 129, "a\n", "ä"])
def test_file_names_cannot_leave_the_folder(name):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(name).encode(), type=schema.FileName)

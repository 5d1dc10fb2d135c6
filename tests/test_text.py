"""Text in and out of tokens: detokenizing, stop strings, chat templates, a model's sampling defaults."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import byte_tokenizer, fallback_tokenizer, word_tokenizer
from tokenizers import Tokenizer
from toy_artifact import build_decoder, edit_manifest
from webgpu_compile import RuntimeFailure
from webgpu_compile.runtime.artifact import Artifact, open_artifact
from webgpu_compile.runtime.chat_template import ChatTemplate, load_chat_template
from webgpu_compile.runtime.sampling_defaults import merged, sampling_defaults
from webgpu_compile.runtime.stop_strings import StopStrings
from webgpu_compile.runtime.text import PENDING, REPLACEMENT, TextStream

DEMO = Path(__file__).parent.parent / "models" / "demo" / "int4"
TOKENIZERS = {
    "demo": Tokenizer.from_file(str(DEMO / "tokenizer.json")),
    "bytes": byte_tokenizer(),
    "fallback": fallback_tokenizer(),
}


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("text", ["hello world", "naïve 🙂 日本語 ok", "é", "a\n\nb", "👩‍👩‍👧"])
def test_a_character_comes_whole_and_as_soon_as_it_is_complete(text: str) -> None:
    tokenizer = byte_tokenizer()
    parts = streamed(tokenizer, tokenizer.encode(text).ids)
    assert "".join(parts) == text
    assert [part for part in parts if part] == list(text)
    assert parts[-1] == ""


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_what_it_is_when_decoded_at_once(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    parts = streamed(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids)
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in part for part in parts)


@pytest.mark.parametrize("name", ["demo", "bytes"])
@settings(deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 255), st.integers(100, 200)), max_size=80))
def test_any_tokens_are_what_they_are_when_decoded_at_once(name: str, ids: list[int]) -> None:
    """Bytes that are no text, in any order, and special tokens between them."""
    tokenizer = TOKENIZERS[name]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_bytes_that_are_no_text_are_not_held_back_for_ever() -> None:
    tokenizer = byte_tokenizer()
    (alone,) = (token for token in range(256) if tokenizer.id_to_token(token) == "ÿ")  # the byte 0xff
    stream = TextStream(tokenizer)
    given_ = [len(stream.push(alone)) for _ in range(50)]
    assert max(sum(given_[: i + 1]) - i for i in range(50)) <= 1
    assert sum(given_) >= 50 - PENDING


def test_spaces_between_words_are_kept() -> None:
    text = "one two two three"
    tokenizer = word_tokenizer(text)
    assert streamed(tokenizer, tokenizer.encode(text).ids) == ["one", " two", " two", " three", ""]


def test_an_unfinished_character_comes_at_the_end() -> None:
    tokenizer = byte_tokenizer()
    assert streamed(tokenizer, tokenizer.encode("aé").ids[:2]) == ["a", "", REPLACEMENT]


@settings(deadline=None)
@given(
    text=st.text("ab.", max_size=30),
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_stop_strings_are_found_wherever_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    stream = StopStrings(stops)
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    given_ = ""
    for start, end in pairwise(borders):
        given_ += stream.push(text[start:end])
        held = len(text[:end]) - len(given_)
        assert stream.found or held < max(map(len, stops), default=1), "more is held back than a stop needs"
    if stream.found is None:
        given_ += stream.finish()
    if not any(stop in text for stop in stops):
        assert (given_, stream.found) == (text, None)
    else:
        assert stream.found in stops
        assert text.startswith(given_ + stream.found)
        assert not any(stop in given_ for stop in stops)


CHATML = (
    "{%- for message in messages -%}\n"
    "  {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}\n"
)
TURNS = [{"role": "user", "content": "Grüße <b>"}, {"role": "assistant", "content": "Hi"}]


def test_a_template_renders_as_in_transformers() -> None:
    template = ChatTemplate(CHATML, {})
    user = "<|im_start|>user\nGrüße <b><|im_end|>\n"
    assert template.render(TURNS[:1]) == user + "<|im_start|>assistant\n"
    answer = "<|im_start|>assistant\nHi<|im_end|>\n"
    assert template.render(TURNS, add_generation_prompt=False) == user + answer


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ nothing }}!", "<s>!"),
        ("{{ {'a': '<ü>'} | tojson }}", '{"a": "<ü>"}'),
        ("{{ [1, 2] | tojson(indent=1) }}", "[\n 1,\n 2\n]"),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
            "Hi",
        ),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}.", "Hi."),
        ("{{ 'tools' if tools else 'none' }}{{ strftime_now('%%') }}", "none%"),
        ("{{ enable_thinking }}", "False"),
        ("  {% if true %}\na\n  {% endif %}\n", "a\n"),  # trim_blocks and lstrip_blocks
    ],
)
def test_names_that_templates_use(source: str, expected: str) -> None:
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(TURNS, enable_thinking=False) == expected


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('only users may speak') }}", "only users may speak"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{% include 'other' %}", "no loader"),
    ],
)
def test_a_template_that_fails_or_would_break_out_is_one_sentence(source: str, problem: str) -> None:
    with pytest.raises(RuntimeFailure, match="the chat template: cannot be used") as caught:
        ChatTemplate(source, {}).render(TURNS)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_decoder(tmp_path_factory.mktemp("toy") / "out")


def with_files(folder: Path, **contents: Any) -> Artifact:
    """The artifact with other files beside it: name__ext=content, JSON unless text."""
    files = {}
    for name, content in contents.items():
        file = name.replace("__", ".")
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        (folder / file).write_bytes(data)
        files[file] = hashlib.sha256(data).hexdigest()
    edit_manifest(folder, lambda manifest: manifest.update(files=files))
    return open_artifact(folder)


def test_where_a_template_is_found(toy: Path) -> None:
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "{{ bos_token }}1"}
    assert load_chat_template(with_files(toy)) is None
    assert load_chat_template(with_files(toy, tokenizer_config__json={})) is None

    def rendered(**files: Any) -> str:
        template = load_chat_template(with_files(toy, **files))
        assert template is not None
        return template.render([])

    assert rendered(tokenizer_config__json=config) == "<s>1"
    assert rendered(tokenizer_config__json=config, chat_template__jinja="{{ eos_token }}2") == "</s>2"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert rendered(tokenizer_config__json={"chat_template": named}) == "d"
    special = {"bos_token": "<b>"}
    files = {"tokenizer_config__json": {"chat_template": "{{ bos_token }}"}}
    assert rendered(special_tokens_map__json=special, **files) == "<b>"


SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50}


@pytest.mark.parametrize(
    ("generation", "search", "expected"),
    [
        ({}, {}, {}),
        ({"temperature": 0.6, "top_p": 0.9}, {}, {}),  # do_sample says whether they count
        ({"repetition_penalty": 1.1}, {}, {"repetition_penalty": 1.1}),
        (SAMPLED, {}, {"temperature": 0.6, "top_p": 0.9, "top_k": 50}),
        (SAMPLED, {"top_k": 20}, {"temperature": 0.6, "top_p": 0.9, "top_k": 20}),
        (SAMPLED, {"do_sample": False}, {}),
        ({"do_sample": True, "top_p": 1.0, "top_k": 0}, {}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": "hot", "top_p": 7, "min_p": -1}, {}, {"temperature": 1.0}),
    ],
)
def test_sampling_starts_from_what_the_model_says(
    toy: Path, generation: Any, search: Any, expected: dict[str, Any]
) -> None:
    files = {"generation_config__json": generation, "genai_config__json": {"search": search}}
    assert sampling_defaults(with_files(toy, **files)) == expected


def test_what_the_caller_says_comes_first() -> None:
    defaults = {"temperature": 0.6, "top_k": 50, "repetition_penalty": 1.1}
    assert merged(defaults, {"temperature": None, "top_k": 3, "n": 7}) == defaults | {"top_k": 3, "n": 7}
    greedy = {"temperature": 0, "repetition_penalty": 1.1, "n": 7}
    assert merged(defaults, {"temperature": 0, "n": 7, "seed": None}) == greedy

"""Text from the demo model: `TextGenerator`, asyncio, and webgpu-run from end to end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pty
import select
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import webgpu_compile
from click.testing import CliRunner
from conftest import Artifacts
from toy_artifact import edit_manifest
from webgpu_compile import RuntimeFailure, TextGenerator
from webgpu_compile.runtime.run_cli import main

DEMO = Path(__file__).parent.parent / "models" / "demo" / "int4"
PROMPT = "import os\nimport "
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 24}
CHATML = (
    "{% for message in messages %}{{ '<s>' + message.role + ': ' + message.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a chat template added: it never learned to talk, but it can be asked to."""
    copy: Path = tmp_path_factory.mktemp("chat") / "out"
    shutil.copytree(artifacts.compile(DEMO / "model.onnx", variants=("portable",)), copy)
    (copy / "chat_template.jinja").write_text(CHATML)
    digest = hashlib.sha256(CHATML.encode()).hexdigest()
    edit_manifest(copy, lambda manifest: manifest["files"].update({"chat_template.jinja": digest}))
    return copy


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[TextGenerator]:
    with TextGenerator(folder) as generator:
        yield generator


def test_text_is_what_the_tokens_say(generator: TextGenerator) -> None:
    completion = generator.generate(PROMPT, **GREEDY)
    pieces = list(completion)
    ids = generator.encode(PROMPT)
    generator.session.reset()
    expected = list(generator.session.generate(ids, 24, temperature=0))
    assert completion.tokens == expected
    assert "".join(pieces) == completion.text == generator.decode(expected)
    assert len(pieces) > 10, "it streams"
    assert (completion.finish_reason, completion.n_prompt) == ("length", len(ids))
    assert 0 < completion.times.first < completion.times.last


def test_the_model_says_how_to_sample_and_a_seed_repeats_it(generator: TextGenerator) -> None:
    assert generator.defaults == {"temperature": 0.6, "top_k": 50, "top_p": 0.95}
    first = generator.generate(PROMPT, max_new_tokens=24)
    text = "".join(first)
    again = "".join(generator.generate(PROMPT, max_new_tokens=24, seed=first.sampling["seed"]))
    others = {"".join(generator.generate(PROMPT, max_new_tokens=24, seed=seed)) for seed in range(3)}
    assert text == again
    assert first.sampling == generator.defaults | {"seed": first.sampling["seed"]}
    assert len(others) > 1


def test_a_stop_string_across_tokens_ends_the_text_before_it(generator: TextGenerator) -> None:
    whole = "".join(generator.generate(PROMPT, **GREEDY))
    pieces = list(generator.generate(PROMPT, **GREEDY))
    border = len(pieces[0]) + len(pieces[1])
    stop = whole[border - 1 : border + 2]
    completion = generator.generate(PROMPT, stop=[stop], **GREEDY)
    assert "".join(completion) == whole[: whole.index(stop)]
    assert completion.finish_reason == "stop"
    assert len(completion.tokens) < 24


def test_a_special_token_can_be_a_stop_string(generator: TextGenerator) -> None:
    """It is no text, so it is given to the GPU as a stop token, with the model's own."""
    seen: dict[str, Any] = {}
    real = generator.session.generate

    def spy(ids: Any, **options: Any) -> Iterator[int]:
        seen.update(options)
        return real(ids, **options)

    generator.session.generate = spy  # type: ignore[method-assign]
    try:
        list(generator.generate(PROMPT, stop=["<s>", "text"], **GREEDY))
    finally:
        generator.session.generate = real  # type: ignore[method-assign]
    assert seen["stop_tokens"] == [2, 1]


def test_a_chat_feeds_only_what_is_new(generator: TextGenerator) -> None:
    messages = [{"role": "user", "content": "import"}]
    first = generator.chat(messages, **GREEDY)
    answer = "".join(first)
    assert generator.session.tokens == [*generator.encode("<s>user: import</s><s>assistant: "), *first.tokens]
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "more"}]
    second = generator.chat(messages, **GREEDY)
    list(second)
    assert second.n_cached == first.n_prompt + len(first.tokens)
    # What is in the cache now is the whole conversation, as if it had been fed at once.
    whole = f"<s>user: import</s><s>assistant: {answer}</s><s>user: more</s><s>assistant: "
    assert generator.session.tokens == [*generator.encode(whole), *second.tokens]
    other = generator.chat([{"role": "user", "content": "other"}], **GREEDY)
    list(other)
    assert other.n_cached == 0
    assert generator.session.tokens[: other.n_prompt] == generator.encode("<s>user: other</s><s>assistant: ")


def test_leaving_early_and_another_prompt(generator: TextGenerator) -> None:
    expected = "".join(generator.generate(PROMPT, **GREEDY))
    left = generator.generate("class A:", **GREEDY)
    next(left)
    assert "".join(generator.generate(PROMPT, **GREEDY)) == expected
    stopped = generator.generate("class A:", temperature=0)
    next(stopped)
    stopped.stop()
    list(stopped)
    assert len(stopped.tokens) <= 3
    assert stopped.finish_reason is None


def test_a_prompt_longer_than_the_cache(generator: TextGenerator) -> None:
    with pytest.raises(RuntimeFailure, match="holds 1024 positions, and the prompt has 3000 tokens; shorten"):
        generator.generate("\n\nimport" * 1000)


class Ticks:
    """Counts how often the event loop gets its turn."""

    async def __aenter__(self) -> Ticks:
        self.n = 0
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            self.n += 1


def test_asyncio_goes_on_while_the_gpu_works(generator: TextGenerator) -> None:
    expected = list(generator.generate(PROMPT, **GREEDY))
    ids = generator.encode(PROMPT)

    async def run() -> None:
        async with Ticks() as ticks:
            assert [text async for text in generator.agenerate(PROMPT, **GREEDY)] == expected
        assert ticks.n >= 5, "24 tokens take tens of milliseconds at least, three batches"
        generator.session.reset()
        tokens = webgpu_compile.in_thread(generator.session.generate(ids, 24, temperature=0))
        assert generator.decode([token async for token in tokens]) == "".join(expected)
        # Several at once wait for their turn.
        both = await asyncio.gather(*(collect(generator, PROMPT) for _ in range(2)))
        assert both == [expected, expected]
        chat = [text async for text in generator.achat([{"role": "user", "content": "x"}], **GREEDY)]
        assert chat

    asyncio.run(run())


async def collect(generator: TextGenerator, prompt: str) -> list[str]:
    return [text async for text in generator.agenerate(prompt, **GREEDY)]


def test_cancelling_a_task_ends_its_generation(generator: TextGenerator) -> None:
    async def run() -> int:
        begun = asyncio.Event()

        async def consume() -> None:
            async for _ in generator.agenerate(PROMPT, temperature=0):
                begun.set()

        task = asyncio.create_task(consume())
        await asyncio.wait_for(begun.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(generator.session.tokens)

    n = asyncio.run(run())
    assert n < 200, "about 1000 would have fitted"
    assert generator.session.finish_reason is None
    assert len(list(generator.session.generate((), 3))) == 3, "nothing is running any more"


def run(*arguments: Any, stdin: str | None = None) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def test_the_command_completes_a_prompt(folder: Path, generator: TextGenerator) -> None:
    expected = "".join(generator.generate(PROMPT, **GREEDY))
    done = run(folder, "--no-chat", "--temperature", 0, "-n", 24, "--stats", stdin=PROMPT)
    assert (done.exit_code, done.stdout) == (0, expected + "\n")
    assert "(24 tokens)\nsampling     greedy\n" in done.stderr


def test_the_command_uses_the_chat_template(folder: Path, generator: TextGenerator) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "import"}]
    expected = "".join(generator.chat(messages, **GREEDY))
    arguments = ("--prompt", "import", "--system", "Be brief.", "--temperature", 0, "-n", 24, "--json")
    result = json.loads(run(folder, *arguments).stdout)
    assert result["object"] == "chat.completion"
    assert result["choices"][0]["message"] == {"role": "assistant", "content": expected}
    assert result["usage"]["prompt_tokens"] == len(
        generator.encode("<s>system: Be brief.</s><s>user: import</s><s>assistant: ")
    )
    assert "--system: is part of a chat" in run(folder, *arguments, "--no-chat").stderr


class Terminal:
    """A child process that believes in a person at a terminal."""

    def __init__(self, *command: str) -> None:
        self.seen = ""
        self._at = 0
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)

    def expect(self, text: str, timeout: float = 120) -> str:
        """Wait for `text`; what came up to its end since the last call."""
        deadline = time.monotonic() + timeout
        while (place := self.seen.find(text, self._at)) < 0:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen[self._at :]!r}"
            if select.select([self._fd], [], [], 1)[0]:
                self.seen += os.read(self._fd, 4096).decode(errors="replace").replace("\r\n", "\n")
        before, self._at = self._at, place + len(text)
        return self.seen[before : self._at]

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def press_until(self, key: str, text: str) -> None:
        """Press `key` again every few seconds until `text` comes up.

        CPython's readline does not see a Ctrl-C between its prompt and its first wait for input.
        """
        for _ in range(20):
            self.type(key)
            with suppress(AssertionError):
                self.expect(text, timeout=5)
                return
        raise AssertionError(f"no {text!r} in {self.seen[self._at :]!r}")

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_conversation_at_a_terminal(folder: Path, generator: TextGenerator) -> None:
    expected = "".join(generator.generate("import os\nimport", **GREEDY))
    module = "webgpu_compile.runtime.run_cli"
    options = ("--no-chat", "--temperature", "0", "--stats")
    terminal = Terminal(sys.executable, "-m", module, str(folder), *options)
    assert 'Type the beginning of a text. """ for several lines' in terminal.expect(">>> ")
    terminal.type('"""import os\n')
    terminal.expect("... ")
    terminal.type('import"""\n')
    terminal.expect(expected[:12])
    terminal.type("\x03")  # stops the text, not the program
    terminal.expect("sampling     greedy\n")
    terminal.expect(">>> ")
    terminal.press_until("\x03", "Use Ctrl-D or /bye to leave.")
    terminal.type("/help\n")
    terminal.expect("forget the conversation")
    terminal.type("/nonsense\n")
    terminal.expect("there is no such command; see /help.")
    terminal.type("x=" * 1500 + "\n")
    terminal.expect("the KV cache: holds 1024 positions, and the prompt has")
    terminal.expect(">>> ")
    terminal.type("/bye\n")
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.seen

"""Chat templates: a conversation as the text that the model was trained on.

A template comes with the model and is a program in Jinja; it runs in Jinja's sandbox, which lets it neither
change objects nor reach Python's internals, with the names that transformers' `apply_chat_template` gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from .artifact import Artifact, strict_json
from .errors import RuntimeFailure

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | ..., "content": text, ...}, as in OpenAI's API."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """A template and the special tokens that it may name.

    Raises:
        RuntimeFailure: it is not a Jinja template, or Jinja is not installed.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        try:
            from jinja2 import TemplateError
        except ImportError:
            raise RuntimeFailure(
                "the chat template", "needs jinja2", "run `pip install jinja2`, or use --no-chat"
            ) from None
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except (TemplateError, RecursionError) as error:
            raise _unusable(error) from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **more: Any) -> str:
        """The text of `messages`, up to where the assistant's answer begins.

        Args:
            messages: the conversation.
            add_generation_prompt: end with the assistant's header.
            more: other variables of the template, such as `tools` or `enable_thinking`.

        Raises:
            RuntimeFailure: the template refuses the conversation (many want user and assistant in turns) or
                fails.
        """
        names = {"tools": None, "documents": None, **self._special_tokens, **more}
        conversation = [dict(message) for message in messages]
        try:
            names |= {"messages": conversation, "add_generation_prompt": add_generation_prompt}
            return str(self._template.render(names))
        except Exception as error:  # a template is a program: it may fail in any way
            raise _unusable(error) from None


def load_chat_template(artifact: Artifact) -> ChatTemplate | None:
    """The template of chat_template.jinja, or else of tokenizer_config.json; None where there is none.

    Raises:
        RuntimeFailure: a file is damaged, or the template is not one.
    """
    files = artifact.manifest.files
    config = read_object(artifact, "tokenizer_config.json")
    if "chat_template.jinja" in files:
        try:
            source: Any = artifact.file("chat_template.jinja").decode("utf-8")
        except UnicodeDecodeError:
            raise RuntimeFailure("chat_template.jinja", "is not UTF-8", "replace it, compile again") from None
    else:
        source = _default(config.get("chat_template"))
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, special_tokens(read_object(artifact, "special_tokens_map.json") | config))


def read_object(artifact: Artifact, name: str) -> dict[str, Any]:
    """A JSON object among the artifact's files; empty where there is none.

    Raises:
        RuntimeFailure: it is not JSON.
    """
    if name not in artifact.manifest.files:
        return {}
    content = strict_json(name, artifact.file(name))
    return content if isinstance(content, dict) else {}


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens in tokenizer_config.json by name; newer files write some as objects."""
    found = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found


def _default(template: Any) -> Any:
    """A model may have several named templates: the one for plain conversations."""
    if not isinstance(template, list):
        return template
    named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    return named.get("default", next(iter(named.values()), None))


def _environment() -> Any:
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks the assistant's words for training; here they are just words."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's way)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers': Jinja's own would escape <, >, & and ' for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(str(message))


def _unusable(error: BaseException) -> RuntimeFailure:
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    return RuntimeFailure(
        "the chat template",
        f"cannot be used ({reason})",
        "change the messages, or use --no-chat to give the text as it is",
    )

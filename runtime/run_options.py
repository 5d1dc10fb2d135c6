"""What a user can ask of webgpu-run, and the help that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import click

from .sampling_defaults import NAMES
from .session import TOKENS_PER_SUBMIT

EXAMPLES = """\b
Examples:
  webgpu-run out/                                    type prompts, or talk
  webgpu-run out/ --prompt "def main():" -n 64
  git diff | webgpu-run out/ --system "Write a commit message." --temperature 0
  webgpu-run out/ --prompt "Once" --json --seed 7    one JSON object, the same every time
  webgpu-run out/ --perplexity text.txt              how well the model knows a text

Sampling starts from the model's own generation_config.json; greedy where it has none. Exit codes: 0, 2 for
what you can mend (one sentence says what), 130 after Ctrl-C.
"""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of webgpu-run; names are those of the options."""

    folder: str
    prompt: str | None = None
    prompt_file: str | None = None
    tokens: str | None = None
    chat: bool | None = None
    system: str | None = None
    perplexity: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    variant: str | None = None
    tokens_per_submit: int = TOKENS_PER_SUBMIT
    window: int | None = None
    stats: bool = False
    json: bool = False

    def generation(self) -> dict[str, Any]:
        """Keyword arguments of `TextGenerator.complete`; None for what the user left open."""
        names = ("max_new_tokens", "tokens_per_submit", *NAMES, "stop")
        return {name: getattr(self, name) for name in names}


class Number(click.FloatRange):
    """A range without nan, which compares with nothing, and without infinity."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class WholeNumber(click.IntRange):
    """A range of integers, called what people call them."""

    name = "whole number"


class SectionOption(click.Option):
    """An option that knows its section of the help."""

    def __init__(self, section: str, *names: str, **settings: Any) -> None:
        super().__init__(names, **settings)
        self.section = section


OPTIONS = (
    SectionOption("Input", "--prompt", metavar="TEXT", help="Text to go on from, or to answer."),
    SectionOption(
        "Input",
        "--prompt-file",
        metavar="FILE",
        help="The same from a UTF-8 file, or - for standard input, which is also read when it is not a "
        "terminal. One line feed at the end is dropped.",
    ),
    SectionOption(
        "Input",
        "--tokens",
        metavar="1,2,3",
        help="Token ids instead of text; needs no tokenizer, prints ids.",
    ),
    SectionOption(
        "Input",
        "--chat/--no-chat",
        default=None,
        help="Write the prompt into the model's chat template, or give it as it is.  [default: --chat where "
        "the model has a template]",
    ),
    SectionOption("Input", "--system", metavar="TEXT", help="System message of a chat."),
    SectionOption(
        "Generation",
        "-n",
        "--max-new-tokens",
        type=WholeNumber(min=0),
        metavar="N",
        help="Stop after so many tokens.  [default: until the model stops or the KV cache is full]",
    ),
    SectionOption(
        "Generation",
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="End before this text; repeatable. It may lie across the borders of tokens.",
    ),
    SectionOption(
        "Generation",
        "--temperature",
        type=Number(min=0),
        metavar="T",
        help="Below 1 more predictable, above 1 more varied; 0 takes the most likely token (greedy).",
    ),
    SectionOption(
        "Generation",
        "--top-k",
        type=WholeNumber(min=0),
        metavar="K",
        help="Choose among the K likeliest tokens; 0 for all.",
    ),
    SectionOption(
        "Generation",
        "--top-p",
        type=Number(min=0, max=1, min_open=True),
        metavar="P",
        help="Choose among the likeliest tokens that together have probability P; 1 for all.",
    ),
    SectionOption(
        "Generation",
        "--min-p",
        type=Number(min=0, max=1),
        metavar="P",
        help="Choose among tokens at least P times as likely as the likeliest; 0 for all.",
    ),
    SectionOption(
        "Generation",
        "--repetition-penalty",
        type=Number(min=0, min_open=True),
        metavar="R",
        help="Above 1, tokens that occurred become less likely; 1 for none.",
    ),
    SectionOption(
        "Generation",
        "--seed",
        type=WholeNumber(0, 2**64 - 1),
        metavar="N",
        help="Of the random numbers: the same seed, the same text.  [default: a new one each time]",
    ),
    SectionOption(
        "Measuring", "--stats", is_flag=True, help="Times and tokens per second, on standard error."
    ),
    SectionOption(
        "Measuring", "--json", is_flag=True, help="One JSON object instead of text, with usage and times."
    ),
    SectionOption(
        "Measuring", "--perplexity", metavar="FILE", help="Score a UTF-8 file instead of generating."
    ),
    SectionOption(
        "Measuring",
        "--window",
        type=WholeNumber(min=2),
        metavar="N",
        help="Tokens of a window of --perplexity.  [default: 1024, or the KV cache if smaller]",
    ),
    SectionOption(
        "GPU",
        "--variant",
        metavar="NAME",
        help="Which of the artifact's variants to run.  [default: the best for the GPU]",
    ),
    SectionOption(
        "GPU",
        "--tokens-per-submit",
        type=WholeNumber(min=1),
        default=TOKENS_PER_SUBMIT,
        show_default=True,
        metavar="N",
        help="Tokens that the GPU makes on its own before they are read.",
    ),
)


def options_from(values: dict[str, Any]) -> RunOptions:
    """Click's values  =>  RunOptions"""
    names = {field.name for field in fields(RunOptions)}
    return RunOptions(**{name: value for name, value in values.items() if name in names})

"""Where webgpu-run's prompt comes from."""

from __future__ import annotations

import sys
from pathlib import Path

from .errors import RuntimeFailure
from .run_options import RunOptions

STDIN = "standard input"
MAX_TEXT_NBYTES = 256 << 20


def prompt_text(options: RunOptions) -> str | None:
    """The prompt of --prompt, --prompt-file or a piped standard input; None to ask a person for it.

    Raises:
        RuntimeFailure: two prompts; a file that cannot be read or is not UTF-8; a --prompt that is not.
    """
    named = {"--prompt": options.prompt, "--prompt-file": options.prompt_file, "--tokens": options.tokens}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise RuntimeFailure(" and ".join(given), "are both prompts", "give one of them")
    if options.prompt is not None:
        return _checked(options.prompt)
    if options.prompt_file is not None and options.prompt_file != "-":
        return read_text(options.prompt_file).removesuffix("\n")
    if options.prompt_file is None and sys.stdin.isatty():
        return None
    return decode(sys.stdin.buffer.read(MAX_TEXT_NBYTES + 1), STDIN).removesuffix("\n")


def read_text(file: str) -> str:
    """A UTF-8 file, or standard input for `-`.

    Raises:
        RuntimeFailure: it cannot be read, is larger than 256 MiB, or is not UTF-8.
    """
    if file == "-":
        return decode(sys.stdin.buffer.read(MAX_TEXT_NBYTES + 1), STDIN)
    try:
        with Path(file).open("rb") as stream:
            data = stream.read(MAX_TEXT_NBYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise RuntimeFailure(file, f"cannot be read ({reason})", "give a UTF-8 text file") from None
    return decode(data, file)


def decode(data: bytes, subject: str) -> str:
    """UTF-8 bytes, with or without a byte order mark.

    Raises:
        RuntimeFailure: with the place of the first byte that is not UTF-8.
    """
    if len(data) > MAX_TEXT_NBYTES:
        raise RuntimeFailure(subject, "is larger than 256 MiB", "give a part of it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RuntimeFailure(
            subject,
            f"is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}",
            "convert it, for example with iconv",
        ) from None


def parse_tokens(text: str) -> list[int]:
    """1,2,3 or 1 2 3  =>  [1, 2, 3]

    Raises:
        RuntimeFailure: something else.
    """
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise RuntimeFailure("--tokens", f"is {text[:40]!r}", "give token ids as 1,2,3") from None


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # the shell gave bytes that are no text
        raise RuntimeFailure(
            "--prompt", "is not UTF-8 text", "use a UTF-8 terminal, or --prompt-file"
        ) from None
    return text

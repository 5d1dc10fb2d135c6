"""The one way the compiler says no."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text from a model or a path as it may stand in a one-line message: control characters are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class CompileError(Exception):
    """A model, file or option that cannot be compiled.

    The message is one sentence for the user: which node, file or option; what is wrong; what to do.
    The command line prints it and exits with code 2. Control characters in it are escaped: what a model or a
    path is called cannot drive a terminal.

    Args:
        subject: the node, file or option, as the user knows it.
        problem: what is wrong with it.
        hint: what to do about it.
    """

    def __init__(self, subject: str, problem: str, hint: str) -> None:
        self.subject, self.problem, self.hint = map(printable, (subject, problem, hint))
        super().__init__(f"{self.subject}: {self.problem}; {self.hint}.")

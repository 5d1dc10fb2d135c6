"""The one way the compiler says no."""

from __future__ import annotations


class CompileError(Exception):
    """A model, file or option that cannot be compiled.

    The message is one sentence for the user: which node, file or option; what is wrong; what to do.
    The command line prints it and exits with code 2.

    Args:
        subject: the node, file or option, as the user knows it.
        problem: what is wrong with it.
        hint: what to do about it.
    """

    def __init__(self, subject: str, problem: str, hint: str) -> None:
        self.subject = subject
        self.problem = problem
        self.hint = hint
        super().__init__(f"{subject}: {problem}; {hint}.")

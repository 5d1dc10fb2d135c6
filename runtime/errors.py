"""The one way the runtime says no."""

from __future__ import annotations


class RuntimeFailure(Exception):  # noqa: N818 (RuntimeError is Python's)
    """An artifact, adapter, device or argument that cannot be used.

    The message is one sentence for the user: what it is about; what is wrong; what to do. The command
    lines print it and exit with code 2. `detail` holds lines that do not fit a sentence, such as the
    place in a shader that a driver rejects.

    Args:
        subject: the file, option, input or device, as the user knows it.
        problem: what is wrong with it.
        hint: what to do about it.
        detail: more lines, shown below the sentence.
    """

    def __init__(self, subject: str, problem: str, hint: str, detail: str = "") -> None:
        self.subject = subject
        self.problem = problem
        self.hint = hint
        self.detail = detail
        sentence = f"{subject}: {problem}; {hint}."
        super().__init__(f"{sentence}\n{detail}" if detail else sentence)


class InconsistencyError(Exception):
    """What does not fit in an artifact, without the sentence around it."""

"""The exceptions that carry meaning across modules, and the exit codes they end a command with.

Everything else is an ordinary Python exception and reaches the user as a traceback, because it is a bug.
"""

import difflib
import re
from collections.abc import Iterable, Mapping

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_RESUMABLE = 0, 1, 2, 75


class InputError(ValueError):
    """Bad input from the user. The message is one line: setting, value, rule, way out. The command exits with 2."""


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, turns text around or is half a character: names of files may hold it, to fool a terminal."""


def printable(text: str, *, keep: str = "") -> str:
    """Return a text with escapes such as \\x1b in place of the characters that control a terminal, `keep` excepted."""
    return _UNPRINTABLE.sub(
        lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode(), text
    )


_LFS_POINTER_START = b"version https://git-lfs.github.com/spec/"
LFS_ADVICE = "is a pointer of Git LFS, not the file itself; run git lfs pull where it was cloned"


def is_lfs_pointer(data: bytes) -> bool:
    """Tell whether a file, by its first bytes, only says where Git LFS keeps the real one."""
    return data.startswith(_LFS_POINTER_START)


class ResumableStop(Exception):
    """Work stopped on request after saving everything needed to go on. The command exits with 75."""


class RunFailed(RuntimeError):
    """A run that cannot go on for a reason outside the code: a full disk, a lost process, a loss that is not finite.

    The message is one line and says what to do; what was saved is intact. The command exits with 1, without a trace.
    """


class BadSample(Exception):
    """One unusable image, to be counted and replaced, never to stop a run by itself.

    Args:
        reason: Short category that counters group by, such as "truncated".
        detail: What exactly was wrong, for the log.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["BadSample"], tuple[str, str]]:
        """Survive the pickling between loader workers and the training process."""
        return type(self), (self.reason, self.detail)


def require(condition: bool, message: str) -> None:
    """Raise an `InputError` with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def nearest(word: str, choices: Iterable[str], meant: Mapping[str, str] | None = None) -> str | None:
    """Return what somebody who wrote `word` probably wanted, of `choices`; None if that cannot be told.

    Args:
        word: As it was written.
        choices: What is there.
        meant: What other words mean that no choice resembles, such as those of other programs; lower case, with `_`.
    """
    known = {_plain(choice): choice for choice in choices}
    plain = _plain(word)
    if plain in known:
        return known[plain]
    if meant is not None and meant.get(plain) in known.values():
        return meant[plain]
    found = difflib.get_close_matches(plain, known, n=1)
    return known[found[0]] if found else None


def did_you_mean(word: str, choices: Iterable[str], meant: Mapping[str, str] | None = None) -> str:
    """Return `nearest` as the end of a message: " (did you mean X?)"; empty where there is none."""
    found = nearest(word, choices, meant)
    return f" (did you mean {found}?)" if found is not None else ""


def _plain(word: str) -> str:
    return word.lower().strip().lstrip("-").replace("-", "_")


def is_failed_compilation(error: BaseException) -> bool:
    """Whether `torch.compile` failed, told by where its errors are defined, so that nothing here imports torch."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def failed_compilation(error: BaseException) -> str:
    """Say in a line that `torch.compile` failed, by the first words of many pages, and what does without it."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"torch.compile failed ({type(error).__name__}: {first[:300]}); without it: --set speed.compile=false for "
        "a model in training, --set compile_encoder=off for the tokenizer of beit tokenize, --set "
        "tokenizer.compile_encoder=off for one in a training; beit doctor looks at the compiler"
    )


def is_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed, told by name and text because torch has no class for gloo's errors."""
    return type(error).__name__ in ("DistBackendError", "DistNetworkError") or "/gloo/transport/" in str(error)

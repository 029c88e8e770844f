import io

import fsspec
import pytest

from beit.common.errors import InputError
from beit.common.storage import remote_file
from beit.common.storage.remote_file import RemoteError, RemoteFile, explain, one_clear_line, retry


class Answer(Exception):
    """An error with a status, as client libraries raise it."""

    def __init__(self, status, message=""):
        super().__init__(f"{status}, message={message!r}")
        self.status, self.message = status, message


class NoCredentialsError(Exception):
    pass


class Answered(Exception):
    """As botocore keeps an answer."""

    def __init__(self, response):
        super().__init__(str(response))
        self.response = response


class Flaky:
    """Raises the given errors, then succeeds."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def pauses(monkeypatch):
    seen = []
    monkeypatch.setattr(remote_file.time, "sleep", seen.append)
    return seen


def hidden(cause):
    """What fsspec makes of a failure to measure a web address."""
    error = FileNotFoundError("https://h/x")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [TimeoutError(), ConnectionResetError(), Answer(500), Answer(503), Answer(429), hidden(Answer(502)), EOFError()],
)
def test_what_may_pass_is_tried_again_with_growing_pauses(pauses, error):
    action = Flaky(error, error, error)
    assert retry("s3://b/x", action) == "done"
    assert action.calls == 4 and pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("error", "is_missing"),
    [(FileNotFoundError("x"), True), (Answer(404), True), (hidden(Answer(404)), True), (Answer(403), False),
     (PermissionError("x"), False), (NoCredentialsError("none"), False), (ValueError("x"), False)],
)  # fmt: skip
def test_what_will_not_pass_is_not_tried_again(pauses, error, is_missing):
    action = Flaky(*[error] * 9)
    with pytest.raises(RemoteError, match=r"^s3://b/x ") as caught:
        retry("s3://b/x", action)
    assert action.calls == 1 and not pauses and caught.value.is_missing == is_missing


class EndpointConnectionError(Exception):
    """As botocore calls it."""


@pytest.mark.parametrize("error", [ConnectionRefusedError(), hidden(EndpointConnectionError("x"))])
def test_an_address_where_nobody_is_ends_the_first_contact_at_once(pauses, error):
    with pytest.raises(RemoteError, match=r"^s3://b/x cannot be reached"):
        retry("s3://b/x", Flaky(error), is_first_contact=True)
    assert not pauses and retry("s3://b/x", Flaky(error)) == "done"
    assert retry("s3://b/x", Flaky(ConnectionResetError()), is_first_contact=True) == "done"


def test_a_missing_bucket_is_no_missing_file(pauses):
    error = FileNotFoundError("The specified bucket does not exist")
    with pytest.raises(RemoteError, match=r"^s3://b/x names a bucket that does not exist$") as caught:
        retry("s3://b/x", Flaky(error))
    assert not caught.value.is_missing and not pauses


def test_missing_files_of_s3_and_of_memory_are_missing(pauses):
    for cause in (KeyError("x"), Answered({"Error": {"Code": "NoSuchKey"}})):
        with pytest.raises(RemoteError, match=r"^s3://b/x does not exist$"):
            retry("s3://b/x", Flaky(hidden(cause)))


def test_s3_is_asked_less_often_unless_the_user_says_how_often(monkeypatch):
    for name in ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(fsspec.config.conf, "s3", raising=False)  # what tests with a server of their own leave
    assert remote_file._options("simplecache::s3://b/x")["s3"]["config_kwargs"]["retries"] == {"max_attempts": 1}
    assert remote_file._options("https://h/x") == {}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {}})
    assert remote_file._options("s3://b/x") == {}
    monkeypatch.delitem(fsspec.config.conf, "s3")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    assert remote_file._options("s3://b/x") == {}


def test_attempts_end(pauses):
    action = Flaky(*[Answer(503, "Slow Down")] * 99)
    with pytest.raises(RemoteError, match=r"^s3://b/x cannot be read: the server answers 503 Slow Down$"):
        retry("s3://b/x", action)
    assert action.calls == 6 and sum(pauses) == 15.5


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (hidden(ConnectionRefusedError("refused")), "cannot be reached (refused); check address and network"),
        (hidden(Answer(403, "Forbidden")), "may not be read (403 Forbidden); check the credentials"),
        (PermissionError("Access Denied"), "may not be read (Access Denied); check the credentials"),
        (FileNotFoundError("x"), "does not exist"),
        (RuntimeError("two\n lines"), "cannot be read (two lines)"),
        (TimeoutError(), "cannot be read (TimeoutError)"),
    ],
)
def test_explanations(error, text):
    assert explain(error) == text
    with pytest.raises(InputError) as caught, one_clear_line("https://h/x"):
        raise error
    assert str(caught.value) == f"https://h/x {text}"


def test_what_cannot_be_written_for_want_of_a_bucket_says_so():
    assert explain(FileNotFoundError("x"), "written") == "cannot be written: its bucket or folder does not exist"


def test_a_remote_file_reads_anywhere_and_repeats_short_answers(pauses):
    class Short(io.BytesIO):
        def read(self, size=-1):
            data = super().read(size)
            return data[:-1] if len(failures) < 2 and not failures.append(size) else data

    failures = []
    with RemoteFile("s3://b/x", Short(b"0123456789")) as file:
        assert file.seek(-4, io.SEEK_END) == 6 and file.read(3) == b"678" and file.tell() == 9
        assert len(pauses) == 2
        assert file.read() == b"9" and file.read(5) == b"" and file.seek(50) == 50 and file.read() == b""
        file.seek(2)
        buffer = bytearray(4)
        assert file.readinto(buffer) == 4 and bytes(buffer) == b"2345" and file.read(99) == b"6789"

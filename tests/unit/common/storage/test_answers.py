"""What went wrong, in words: of obstore's prose, of HTTP libraries, of the operating system."""

import pytest

from beit.common.errors import InputError
from beit.common.storage.answers import MissingFile, NoOffsets, RemoteError, explain, failure

SECRET = "X-Amz-Credential=me&X-Amz-Signature=0a1b"


class Answer(Exception):
    """An error with a status, as client libraries raise it."""

    def __init__(self, status, message=""):
        super().__init__(f"{status}, message={message!r}")
        self.status, self.message = status, message


class NoCredentialsError(Exception):
    pass


class GenericError(Exception):
    """As obstore puts what it has no type for."""

    def __init__(self, text):
        super().__init__(f"Generic S3 error: Error performing GET https://h/b/x?{SECRET} in 2ms{text}")


REFUSED = GenericError(
    " - HTTP error: error sending request\n\nDebug source:\nHttpError { kind: Connect, source: ConnectError("
    '"tcp connect error", Os { code: 111, kind: ConnectionRefused, message: "Connection refused" }'
)
STATUS = " - Server returned non-2xx status code: "


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (REFUSED, RemoteError, "cannot be reached (Connection refused); check address and network"),
        (ConnectionRefusedError("refused"), RemoteError, "cannot be reached (refused); check address and network"),
        (
            GenericError(", after 5 retries" + STATUS + "503 Service Unavailable: <Code>SlowDown</Code>"),
            RemoteError,
            "cannot be read: the server answers 503 Service Unavailable",
        ),
        (Answer(503, "Slow Down"), RemoteError, "cannot be read: the server answers 503 Slow Down"),
        (
            GenericError(STATUS + "400 Bad Request: <Error><Message>The\n range is odd</Message></Error>"),
            InputError,
            "cannot be read: the server answers 400 Bad Request: The range is odd",
        ),
        (GenericError(STATUS + "301 Moved"), InputError, "cannot be read: it is in another region; set AWS_REGION to "),
        (
            GenericError(STATUS + "403 Forbidden: "),
            InputError,
            "may not be read (403 Forbidden); check the credentials",
        ),
        (Answer(403, "Forbidden"), InputError, "may not be read (403 Forbidden); check the credentials"),
        (PermissionError("Access Denied"), InputError, "may not be read (Access Denied); check the credentials"),
        (FileNotFoundError("x"), MissingFile, "does not exist"),
        (Answer(404), MissingFile, "does not exist"),
        (GenericError(STATUS + "404 Not Found: <Code>NoSuchBucket</Code>"), InputError, "names a bucket that does not"),
        (FileNotFoundError("The specified bucket does not exist"), InputError, "names a bucket that does not exist"),
        (NoCredentialsError("none"), InputError, "needs credentials (Unable to locate credentials); set those of its"),
        (
            Exception("Error performing PUT http://169.254.169.254/latest/api/token in 9ms - HTTP error"),
            InputError,
            "needs credentials (Unable to locate credentials)",
        ),
        (
            Exception("Content-Length Header missing from response"),
            NoOffsets,
            "cannot be read at offsets on this server; copy it to a disk first",
        ),
        (RuntimeError("two\n lines"), RemoteError, "cannot be read (two lines)"),
        (GenericError("\n\nDebug source:\nGeneric {"), RemoteError, "cannot be read (Generic S3 error: "),
        (TimeoutError(), RemoteError, "cannot be read (TimeoutError)"),
        (ValueError("x"), InputError, "cannot be read (x)"),
    ],
)
def test_every_failure_is_one_line_of_the_right_kind_without_the_query(error, kind, text):
    found = failure("s3://b/x", error)
    assert type(found) is kind and str(found).startswith(f"s3://b/x {text}")
    assert "\n" not in str(found) and SECRET not in str(found)


def test_what_a_user_just_named_is_the_users_to_mend():
    assert type(failure("s3://b/x", REFUSED, is_first_contact=True)) is InputError


def test_what_cannot_be_written_for_want_of_a_bucket_says_so():
    assert explain(FileNotFoundError("x"), "written") == "cannot be written: its bucket or folder does not exist"
    assert type(failure("s3://b/x", FileNotFoundError("x"), "written")) is InputError

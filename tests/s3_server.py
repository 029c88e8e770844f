"""An S3 server on this machine, for tests of s3:// locations."""

from __future__ import annotations

import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from beit.common.storage.remote_place import forget_stores


def one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have threads call a function one after the other.

    moto 5.2.5 looks at If-Match and writes without a lock, so that two writes of one version may both succeed, which
    S3 does not allow (findings/moto_lets_two_conditional_writes_of_one_version_succeed.sh).
    """
    lock = threading.Lock()

    def locked(*arguments: Any, **named: Any) -> Any:
        with lock:
            return function(*arguments, **named)

    return locked


@contextmanager
def serve_s3(files: dict[str, bytes], *, bucket: str = "data") -> Iterator[str]:
    """Serve files by name as a bucket, and point s3:// at it by the variables a user would set.

    Gives the URL of the bucket.
    """
    import boto3
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        with (
            mock.patch.dict(os.environ, variables),
            mock.patch.object(S3Response, "put_object", one_at_a_time(S3Response.put_object)),
        ):
            forget_stores()
            # All servers of a process share their buckets: those of an earlier test would still be there.
            reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
            urllib.request.urlopen(reset).close()
            client = boto3.client("s3")
            client.create_bucket(Bucket=bucket)
            for name, data in files.items():
                client.put_object(Bucket=bucket, Key=name, Body=data)
            yield f"s3://{bucket}"
    finally:
        forget_stores()
        server.stop()

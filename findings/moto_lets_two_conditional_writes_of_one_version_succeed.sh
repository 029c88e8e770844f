#!/usr/bin/env bash
# moto 5.2.5: of two `put_object` calls with `IfMatch` of the same version that reach the threaded server at the same
# moment, both may succeed: it compares the ETag first and writes later, without a lock in between.
#
# Expected: one succeeds and the other gets 412, as with S3, whose conditional writes are made for leases and locks. Tests
# of code that rests on them fail now and then on a busy machine, and the code is right.
# Seen: both succeed. Here the second waits where the first is about to write, so that it takes no luck; without that it
# takes some hundred rounds.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'moto[server,s3]==5.2.5' boto3==1.43.56 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.s3.models import S3Backend
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()


def connect():
    return boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}),
    )


clients = [connect(), connect()]
clients[0].create_bucket(Bucket="data")
version = clients[0].put_object(Bucket="data", Key="lease", Body=b"old")["ETag"]

both_are_about_to_write = threading.Barrier(2)
put_object = S3Backend.put_object


def wait_and_put(*arguments, **named):
    both_are_about_to_write.wait(20)
    return put_object(*arguments, **named)


S3Backend.put_object = wait_and_put


def write(client, body):
    try:
        return client.put_object(Bucket="data", Key="lease", Body=body, IfMatch=version)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


with ThreadPoolExecutor() as pool:
    statuses = list(pool.map(write, clients, [b"one", b"two"]))
server.stop()
print("two writes of one version were answered with", *statuses)
sys.exit(0 if statuses == [200, 200] else 1)
PYTHON

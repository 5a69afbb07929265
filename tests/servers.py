"""Object stores on loopback for the tests of the corpus: moto's S3 and azurite's Azure, started here and stopped at
the end."""

import base64
import contextlib
import email.utils
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # azurite's own, public
)
S3_SECRET = "s3-secret-of-the-tests"
# moto asks whether an object is there, and then puts it: two conditional puts at once may both pass. S3 lets one pass.
MOTO = """
import threading
from moto.s3.responses import S3Response
from moto.server import main
put, one = S3Response.put_object, threading.Lock()
def alone(self):
    with one:
        return put(self)
S3Response.put_object = alone
main()
"""


def azurite() -> str | None:
    """azurite's program, from $AZURITE, `make azurite` or the path; None where it is not installed."""
    made = Path(sys.prefix) / "azurite/node_modules/.bin/azurite-blob"
    return os.environ.get("AZURITE") or (str(made) if made.exists() else shutil.which("azurite-blob"))


@contextlib.contextmanager
def _running(command: list[str], port: int):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise RuntimeError(f"{command[0]} ended with {process.wait(0.05)}")
        yield
    finally:
        process.terminate()
        process.wait()


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def s3():
    """A bucket; yields (URL, the environment that reaches it)."""
    port = _port()
    at = f"http://127.0.0.1:{port}"
    env = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": S3_SECRET, "AWS_REGION": "us-east-1"}
    with _running([sys.executable, "-c", MOTO, "-H", "127.0.0.1", "-p", str(port)], port):
        urllib.request.urlopen(urllib.request.Request(f"{at}/corpora", method="PUT", data=b"")).close()
        yield "s3://corpora", env | {"AWS_ENDPOINT_URL": at, "AWS_ALLOW_HTTP": "true"}


@contextlib.contextmanager
def azure():
    """A container; yields (URL, the environment that reaches it)."""
    port, account = _port(), "devstoreaccount1"
    at = f"http://127.0.0.1:{port}/{account}"
    env = {"AZURE_STORAGE_ACCOUNT_NAME": account, "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY, "AZURE_ENDPOINT": at}
    command = [azurite(), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    with _running([*command, "--skipApiVersionCheck", "--disableTelemetry", "--silent"], port):
        date = email.utils.formatdate(usegmt=True)
        text = (
            "PUT"
            + "\n" * 12
            + f"x-ms-date:{date}\nx-ms-version:2021-08-06\n/{account}/{account}/corpora\nrestype:container"
        )
        signed = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
        headers = {
            "x-ms-date": date,
            "x-ms-version": "2021-08-06",
            "Content-Type": "",
            "Authorization": f"SharedKey {account}:{base64.b64encode(signed).decode()}",
        }
        made = urllib.request.Request(f"{at}/corpora?restype=container", method="PUT", data=b"", headers=headers)
        urllib.request.urlopen(made).close()
        yield "az://corpora", env | {"AZURE_ALLOW_HTTP": "true"}

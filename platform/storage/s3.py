"""The bucket that holds the cold tier, as its administrator. Nodes get presigned GETs only."""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from django.conf import settings

from base.once import once
from storage import s3_requests

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

# Nodes renew addresses in use; a node whose key was revoked reads on for so long at most.
PRESIGNED_S = 300
# Outside of neve.formats.keys.OBJECTS_PREFIX: it belongs to no tenant. `neve ping` reads it.
PROBE_KEY = "probe"


def client() -> S3Client:
    """Shared by all threads (boto3's clients may be). Raises botocore's errors, within 10 s."""
    env = settings.ENV
    return _client(env.s3_endpoint, env.s3_region, env.s3_access_key, env.s3_secret_key)


@once
def _client(endpoint: str, region: str, access_key: str, secret_key: str) -> S3Client:
    made = boto3.Session().client(  # the default session is not for threads
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(
            signature_version="s3v4",
            tcp_keepalive=True,
            connect_timeout=2,
            read_timeout=10,
            retries={"max_attempts": 2},
            # An S3 on this host is not behind the proxy that http_proxy may name.
            proxies={} if _is_here(endpoint) else None,
            # The name in the path works on every S3, also behind an IP address. Bodies carry a
            # CRC-32; a signed SHA-256 costs three times as much, and not every S3 checks it.
            s3={"addressing_style": "path", "payload_signing_enabled": False},
            # Not every S3 takes the newer trailing checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    made.meta.events.register("before-send.s3", s3_requests.count)
    return made


def _is_here(endpoint: str) -> bool:
    return urlsplit(endpoint).hostname in ("127.0.0.1", "localhost", "::1")


def ensure_bucket() -> bool:
    """Makes the bucket if it is not there. Returns whether it made it."""
    bucket = settings.ENV.s3_bucket
    try:
        client().head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        client().create_bucket(Bucket=bucket)
        return True
    return False


def ensure_probe() -> None:
    """Writes the object that `neve ping` reads. May be repeated."""
    client().put_object(Bucket=settings.ENV.s3_bucket, Key=PROBE_KEY, Body=b"neve")


def presign_get(object_key: str) -> str:
    """A URL that reads this object, also in ranges, for PRESIGNED_S seconds. Makes no request."""
    return client().generate_presigned_url(
        "get_object",
        Params={"Bucket": settings.ENV.s3_bucket, "Key": object_key},
        ExpiresIn=PRESIGNED_S,
    )

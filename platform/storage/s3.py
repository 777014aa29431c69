"""Buckets that hold the cold tier, as their administrator. Nodes get presigned GETs only.

The environment's bucket is the default store (`default`); `catalog.stores` knows the others.
"""

from dataclasses import dataclass, field
from functools import partial
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


@dataclass(frozen=True)
class Bucket:
    """One bucket of one S3, and how to sign in. `storage_class` empty: the bucket's own."""

    endpoint: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)
    name: str
    storage_class: str = ""

    @property
    def client(self) -> S3Client:
        """Shared by all threads (boto3's clients may be). Raises botocore's errors, within 10 s."""
        return _client(self.endpoint, self.region, self.access_key, self.secret_key, self.name)

    @property
    def where(self) -> dict[str, Any]:
        return {"Bucket": self.name}

    @property
    def written_as(self) -> dict[str, Any]:
        """Options of a request that makes an object."""
        return {"StorageClass": self.storage_class} if self.storage_class else {}

    def object(self, key: str) -> "Object":
        return Object(self, key)

    def exists(self) -> bool:
        """Raises botocore's errors, also where keys may use the bucket but not ask for it."""
        try:
            self.client.head_bucket(Bucket=self.name)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            return False
        return True

    def ensure(self) -> bool:
        """Makes the bucket if it is not there. Returns whether it made it."""
        if self.exists():
            return False
        self.client.create_bucket(Bucket=self.name)
        return True

    def ensure_probe(self) -> None:
        """Writes the object that `neve ping` reads. May be repeated."""
        self.client.put_object(**self.where, Key=PROBE_KEY, Body=b"neve")


@dataclass(frozen=True)
class Object:
    """A key of a bucket; whether it is there is not known. Methods raise botocore's errors."""

    bucket: Bucket
    key: str

    @property
    def where(self) -> dict[str, Any]:
        return {"Bucket": self.bucket.name, "Key": self.key}

    def presign_get(self) -> str:
        """A URL that reads it, also in ranges, for PRESIGNED_S seconds. Makes no request."""
        return self.bucket.client.generate_presigned_url(
            "get_object", Params=self.where, ExpiresIn=PRESIGNED_S
        )

    def get(self, span: str) -> Any:
        """The answer to a ranged GET; `span` as in the header Range."""
        return self.bucket.client.get_object(**self.where, Range=span)

    def delete(self) -> None:
        """No error if it is not there."""
        self.bucket.client.delete_object(**self.where)

    def abort_uploads(self) -> int:
        """Ends unfinished multipart uploads: S3 keeps their parts. Returns how many."""
        client = self.bucket.client
        listed = client.list_multipart_uploads(**self.bucket.where, Prefix=self.key)
        uploads = [each for each in listed.get("Uploads", ()) if each["Key"] == self.key]
        for upload in uploads:
            client.abort_multipart_upload(**self.where, UploadId=upload["UploadId"])
        return len(uploads)


def default() -> Bucket:
    """The environment's."""
    env = settings.ENV
    return Bucket(
        env.s3_endpoint, env.s3_region, env.s3_access_key, env.s3_secret_key, env.s3_bucket
    )


def client() -> S3Client:
    """Of the default bucket."""
    return default().client


@once
def _client(endpoint: str, region: str, access_key: str, secret_key: str, bucket: str) -> S3Client:
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
    made.meta.events.register("before-send.s3", partial(s3_requests.count, bucket=bucket))
    return made


def _is_here(endpoint: str) -> bool:
    return urlsplit(endpoint).hostname in ("127.0.0.1", "localhost", "::1")


def ensure_bucket() -> bool:
    """`Bucket.ensure` of the default one."""
    return default().ensure()


def ensure_probe() -> None:
    default().ensure_probe()


def presign_get(object_key: str) -> str:
    """Of an object in the default bucket."""
    return default().object(object_key).presign_get()

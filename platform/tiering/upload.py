"""An S3 object written front to back in parts: full parts are sent while the next one is filled.

Memory: `memory_bytes()`, whatever the size of the object. S3 checks a CRC-32 of each part, so a
part that arrives changed is refused. A failed upload is aborted; that of a killed worker is ended
by `storage.s3.Object.abort_uploads`.
"""

import zlib
from base64 import b64encode
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from hashlib import md5
from itertools import count
from types import TracebackType
from typing import Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from neve.formats.block import Buffer
from storage.s3 import Object

# Of each part but the last: some S3 want equal parts, all want 5 MiB at least and 10,000 at most.
PART_BYTES = 16 << 20
PARTS_HELD = 4  # one is being filled, the others are being sent


class MultipartUpload:
    """Use it with `with`; it is aborted unless `complete` was called. Not for threads.

    Raises botocore's errors, those of a part with a later call. `with_md5`: compares ETags with
    MD5s, for `is_proven`; some S3 give other ETags.
    """

    def __init__(self, into: Object, *, with_md5: bool = False) -> None:
        self.size_bytes = 0
        self.is_proven = with_md5  # S3 answered with the MD5 of each part that it stored
        self._with_md5 = with_md5
        self._client, self._where = into.bucket.client, into.where
        self._as = into.bucket.written_as
        self._upload_id: str | None = None
        self._is_complete = False
        self._part = bytearray(PART_BYTES)
        self._filled = 0
        self._sent: set[Future[bytearray]] = set()
        self._spare: list[bytearray] = []
        self._numbers = count(1)
        self._done: dict[int, dict[str, Any]] = {}
        self._pool = ThreadPoolExecutor(PARTS_HELD - 1, thread_name_prefix="upload")

    def write(self, data: Buffer) -> None:
        """Copies `data`; waits while all other parts are being sent."""
        rest = memoryview(data).cast("B")
        self.size_bytes += len(rest)
        while rest:
            n = min(len(rest), PART_BYTES - self._filled)
            memoryview(self._part)[self._filled : self._filled + n] = rest[:n]
            self._filled += n
            rest = rest[n:]
            if self._filled == PART_BYTES:
                self._send(self._part)
                self._part, self._filled = self._next_part(), 0

    def complete(self) -> None:
        """The object is there when this returns, and not before. One small part takes one PUT."""
        last = bytearray(memoryview(self._part)[: self._filled])
        if self._upload_id is None:
            answer = self._client.put_object(
                **self._where, **self._as, Body=bytes(last), ChecksumCRC32=_crc32(last)
            )
            self._compare(last, answer["ETag"])
        else:
            if last:
                self._send(last)
            for sent in self._sent:
                sent.result()
            parts: Any = [self._done[number] for number in sorted(self._done)]
            self._client.complete_multipart_upload(
                **self._where, UploadId=self._upload_id, MultipartUpload={"Parts": parts}
            )
        self._is_complete = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._upload_id is not None and not self._is_complete:
            try:
                self._client.abort_multipart_upload(**self._where, UploadId=self._upload_id)
            except (BotoCoreError, ClientError) as refusal:
                if error is not None:
                    error.add_note(f"and its upload could not be aborted: {refusal}")

    def _send(self, part: bytearray) -> None:
        if self._upload_id is None:
            begun = self._client.create_multipart_upload(
                **self._where, **self._as, ChecksumAlgorithm="CRC32"
            )
            self._upload_id = begun["UploadId"]
        self._sent.add(self._pool.submit(self._put, next(self._numbers), part))

    def _compare(self, part: bytearray, etag: str) -> None:
        if self._with_md5 and etag.strip('"') != md5(part, usedforsecurity=False).hexdigest():
            self.is_proven = False

    def _next_part(self) -> bytearray:
        """A free buffer; waits for the first part that arrives. Raises the error of a part."""
        if not self._spare and len(self._sent) < PARTS_HELD - 1:
            return bytearray(PART_BYTES)
        if not self._spare:
            arrived, self._sent = wait(self._sent, return_when=FIRST_COMPLETED)
            self._spare += [each.result() for each in arrived]
        return self._spare.pop()

    def _put(self, number: int, part: bytearray) -> bytearray:
        """Uploads one part, in a thread of the pool; returns it for the next bytes."""
        check, upload_id = _crc32(part), self._upload_id
        assert upload_id is not None
        answer = self._client.upload_part(
            **self._where,
            UploadId=upload_id,
            PartNumber=number,
            Body=part,  # type: ignore[arg-type]  # botocore takes a bytearray, uncopied
            ChecksumCRC32=check,
        )
        self._compare(part, answer["ETag"])
        self._done[number] = {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": check}
        return part


def memory_bytes() -> int:
    """Of one upload: the parts, and a copy of the last one while it is cut to its size."""
    return PART_BYTES * (PARTS_HELD + 1)


def _crc32(data: bytearray) -> str:
    return b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()

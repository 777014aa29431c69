"""When a codec at rest is worth its decoding. Pure."""

from dataclasses import dataclass
from typing import Final

# Cores of a node that decode while it reads from S3: its reader decodes on each of its threads.
CORES: Final = 4


@dataclass(frozen=True)
class Costs:
    """`read_bytes_per_s`: from the store to one node. `decode_bytes_per_s`: of plain bytes that one
    core decodes."""

    read_bytes_per_s: float
    decode_bytes_per_s: float


def is_worthwhile(plain_bytes: int, encoded_bytes: int, costs: Costs) -> bool:
    """Whether the encoded bytes are there sooner: `encoded / read + plain / decode < plain / read`.

    Decoding is spread over CORES, and not counted as hidden behind reading.
    """
    decode_s = plain_bytes / (costs.decode_bytes_per_s * CORES)
    return encoded_bytes / costs.read_bytes_per_s + decode_s < plain_bytes / costs.read_bytes_per_s

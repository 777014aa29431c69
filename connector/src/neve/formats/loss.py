"""What storing KV with loss costs, as measured: in heartbeats, answers and reports."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

_MOST: Final = {"error": 10.0, "kl": 1000.0, "argmax": 1.0}


@dataclass(frozen=True)
class Loss:
    """Of KV that `codec` encoded. None: not measured.

    `error`: root of the mean square error over that of the numbers. `kl`: mean Kullback-Leibler
    divergence of the next token's distribution, in nats. `argmax`: share of positions whose
    likeliest token stays."""

    codec: str
    error: float | None = None
    kl: float | None = None
    argmax: float | None = None

    @classmethod
    def from_dict(cls, raw: object) -> Self | None:
        """Inverse of `as_dict`. Numbers that cannot be are left out; None if there is no codec."""
        if not isinstance(raw, Mapping) or not isinstance(codec := raw.get("codec"), str):
            return None
        if not 0 < len(codec) <= 20:
            return None
        return cls(codec, **{name: _number(raw.get(name), most) for name, most in _MOST.items()})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def words(self) -> str:
        """Such as `lossy: int8, error 0.0104, KL 1.2e-04`."""
        found = [f"lossy: {self.codec}"]
        found.append("error not measured" if self.error is None else f"error {self.error:.4f}")
        found.append("KL not measured" if self.kl is None else f"KL {self.kl:.1e}")
        return ", ".join(found)


def _number(value: object, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= most else None  # no NaN, no integer too large for a float

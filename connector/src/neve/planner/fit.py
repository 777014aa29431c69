"""Non-negative least squares for two terms, with exponential forgetting."""

from typing import Final

# Below this fraction of independent variation, the two terms cannot be separated.
_LEAST_SPREAD: Final = 0.02


class TwoTermFit:
    """Fits `y = a*u + b*v` with `a, b >= 0`. If the terms cannot be separated, `b*v` gets `share`
    of `y` in samples with `v > 0`.

    Assumes that a sample's variance grows with `y`: long times vary more than short ones. Each new
    sample multiplies the weight of earlier samples by `fade`.
    """

    def __init__(self, *, fade: float = 0.9, share: float = 0.0) -> None:
        self._fade, self._share = fade, share
        self._uu = self._uv = self._vv = self._uy = self._vy = 0.0
        self.samples = 0

    def add(self, u: float, v: float, y: float) -> None:
        """One sample; `y` must be positive."""
        fade, weight = self._fade, 1.0 / y
        self._uu = fade * self._uu + weight * u * u
        self._uv = fade * self._uv + weight * u * v
        self._vv = fade * self._vv + weight * v * v
        self._uy = fade * self._uy + weight * u * y
        self._vy = fade * self._vy + weight * v * y
        self.samples += 1

    def solve(self) -> tuple[float, float] | None:
        """Returns (a, b); None before the first sample."""
        if self._uu == 0.0:
            return None
        alone = (self._uy / self._uu, 0.0)
        determinant = self._uu * self._vv - self._uv * self._uv
        if determinant <= _LEAST_SPREAD * self._uu * self._vv:
            if self._share == 0 or self._vv == 0:
                return alone
            return alone[0] * (1.0 - self._share), self._share * self._vy / self._vv
        a = (self._uy * self._vv - self._vy * self._uv) / determinant
        b = (self._vy * self._uu - self._uy * self._uv) / determinant
        if b < 0:
            return alone
        if a < 0:
            return 0.0, self._vy / self._vv
        return a, b

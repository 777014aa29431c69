"""A look-up of blocks that nobody waits for."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from neve.datapath.transfer import Transfer
from neve.errors import MissReason
from neve.index.tier import Location


class Finding(Transfer):
    """Where blocks are, whatever the others are. Its outcomes: None (found) or why not.

    `locations`: in the order of the ids, None where a block was not found. Complete once it is
    done.
    """

    def __init__(
        self,
        ids: Sequence[bytes],
        deadline: float,
        *,
        refine: Callable[[bytes, Location], Location] | None = None,
    ) -> None:
        """`refine`: adds what the index does not know, such as the node's own copy."""
        super().__init__(len(ids), deadline)
        self.locations: list[Location | None] = [None] * len(ids)
        self._refine = refine
        self._places: defaultdict[bytes, list[int]] = defaultdict(list)
        for n, id_ in enumerate(ids):
            self._places[id_].append(n)

    def answer(self, id_: bytes, found: Location | MissReason) -> None:
        """For the client: what the index says of one id."""
        for n in self._places[id_]:
            if isinstance(found, MissReason):
                self.settle(n, found)
            else:
                self.locations[n] = self._refine(id_, found) if self._refine else found
                self.settle(n, None)

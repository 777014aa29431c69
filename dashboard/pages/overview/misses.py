"""Why blocks were missed: words for each reason and a lever that helps. Pure."""

from dataclasses import dataclass

MISS_WORDS = {
    "never_stored": ("Never stored", "first time seen: nothing to fix"),
    "evicted": ("Evicted hot", "the hot tier was full, without a cold copy: raise the hot quota"),
    "evicted_cold": ("Evicted cold", "the cold tier was full: raise the cold quota"),
    "unflushed": ("Not flushed", "the cold tier refused it: raise the cold quota, end pins"),
    "unsupported": ("Unsupported", "stored by a newer version of Neve: update the node"),
    "idle": ("Idle", "the idle rule removed it, without a cold copy: flush it, or set hot_idle_s"),
    "expired": ("Expired", "retention or a person ended it"),
    "quota": ("Over quota", "refused when it was stored"),
    "fingerprint": ("Fingerprint", "stored by another model or layout"),
    "timeout": ("Timeout", "storage answered too late"),
    "breaker": ("Breaker open", "the node is serving without Neve"),
    "corrupt": ("Corrupt", "failed verification and was dropped"),
    "clock": ("Clock", "S3's clock and the platform's differ: set both by NTP"),
    "denied": ("Denied", "S3 refuses what the platform signs: check its S3 key and region"),
}


@dataclass(frozen=True)
class MissShare:
    reason: str
    label: str
    hint: str
    blocks: int
    share: float  # of all missed blocks
    of_largest: float  # for the bar


def miss_shares(misses: dict[str, int]) -> list[MissShare]:
    """Reasons that happened, the most frequent first."""
    counted = {reason: blocks for reason, blocks in misses.items() if blocks > 0}
    total, largest = sum(counted.values()), max(counted.values(), default=0)
    shares = []
    for reason, blocks in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        label, hint = MISS_WORDS.get(reason, (reason.replace("_", " "), ""))
        shares.append(MissShare(reason, label, hint, blocks, blocks / total, blocks / largest))
    return shares

"""Segments move between stores by rules: copied, verified, flipped by compare-and-set, and the old
place deleted after a grace time. Nothing here knows the index: a segment's number and its blocks'
offsets stay as they are."""

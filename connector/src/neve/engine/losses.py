"""What `neve codec-check` wrote of the codec that this engine stores with."""

import json
from pathlib import Path

from neve.errors import Misuse
from neve.formats.loss import Loss
from neve.formats.space import EXACT

_FIELD = "codec_report"


def reported(path: str | None, codec: str) -> Loss:
    """Of `codec`; nothing measured if there is no report. Raises Misuse for one that has none."""
    if path is None or codec == EXACT:
        return Loss(codec)
    try:
        losses = json.loads(Path(path).read_text())["losses"]
        found = [loss for each in losses if (loss := Loss.from_dict(each)) is not None]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Misuse(
            f"{path} is no report ({error}): write one with `neve codec-check MODEL --write`",
            field=_FIELD,
        ) from error
    for loss in found:
        if loss.codec == codec:
            return loss
    raise Misuse(
        f"{path} has nothing of {codec}: write it with `neve codec-check MODEL --codec {codec}`",
        field=_FIELD,
    )

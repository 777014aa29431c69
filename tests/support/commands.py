"""The other side of `ScriptProcess`: run by an engine's interpreter, before the engine is imported.

Answers go to the process's original stdout; whatever else is printed goes to stderr.
"""

import json
import os
import sys
import traceback

_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def answer_commands(target: object) -> None:
    """Calls a method of `target` for each line of stdin, until it ends."""
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(target, command.pop("do"))(**command)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=_answers, flush=True)

"""`make figures`: runs the commands of docs/planning.md, and writes their output and figures.

A block of the page that begins with ```console has commands after `$ ` and what they print. They
run in order, offline, in one empty folder that has examples/planning as on the page. Known are
`neve …`, `python examples/planning/traces.py …`, `> FILE` and `| head -N`; `\\` continues a line.
Figures that commands write (`--plot NAME.svg`) go to docs/images. A test holds output and figures.

Blocks about conversation_trace.jsonl, which is published elsewhere, stay as they are where it is
not found.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from click.testing import CliRunner

from deploy.installation import ROOT
from neve.cli.main import main

PAGE = ROOT / "docs/planning.md"
IMAGES = ROOT / "docs/images"
RECORDED = ROOT.parent / "shared/traces/conversation_trace.jsonl"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """(command as written, its output) of a console block."""
    command, output, is_open = "", "", False
    for line in block.splitlines(keepends=True):
        if is_open or line.startswith("$ "):
            if not is_open and command:
                yield command, output
                command, output = "", ""
            command += line
            is_open = line.rstrip().endswith("\\")
        else:
            output += line
    if command:
        yield command, output


def run(command: str) -> str:
    """What a command prints, in the current folder. Raises `RuntimeError` if it fails."""
    words = shlex.split(command.removeprefix("$ ").replace("\\\n", " "))
    most, file = None, None
    if "|" in words:
        place = words.index("|")
        assert words[place + 1] == "head", command
        words, most = words[:place], int(words[place + 2].removeprefix("-"))
    if ">" in words:
        place = words.index(">")
        words, file = words[:place], Path(words[place + 1])
    if words[0] == "neve":
        done = CliRunner().invoke(main, words[1:], prog_name="neve")
        text, is_well = done.stdout, done.exit_code == 0
        trouble = done.output
    else:
        assert words[:2] == ["python", "examples/planning/traces.py"], command
        ran = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
        text, is_well, trouble = ran.stdout, ran.returncode == 0, ran.stderr
    if not is_well:
        raise RuntimeError(f"{command}{trouble}")
    if file:
        file.write_text(text)
        return ""
    lines = [line.rstrip() + "\n" for line in text.splitlines()]
    return "".join(lines[:most])


def renewed(page: str, folder: Path) -> str:
    """The page with the output of its commands, which run in `folder`; figures lie there after."""
    (folder / "examples").symlink_to(ROOT / "examples")
    if RECORDED.exists():
        (folder / RECORDED.name).symlink_to(RECORDED)

    def anew(match: re.Match[str]) -> str:
        if RECORDED.name in match[1] and not RECORDED.exists():
            return match[0]
        block = "".join(command + run(command) for command, _ in commands(match[1]))
        return f"```console\n{block}```"

    with chdir(folder):
        return _BLOCK.sub(anew, page)


def write() -> None:
    with TemporaryDirectory() as folder:
        PAGE.write_text(renewed(PAGE.read_text(), Path(folder)))
        for figure in sorted(Path(folder).glob("*.svg")):
            (IMAGES / figure.name).write_bytes(figure.read_bytes())


if __name__ == "__main__":
    write()

"""`python -m neve` is the command `neve`."""

from neve.cli import main

main(prog_name="neve")

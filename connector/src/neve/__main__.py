"""`python -m neve` is the command `neve`."""

from neve.cli.main import main

main(prog_name="neve")

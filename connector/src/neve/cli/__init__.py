"""The command `neve`: `main` defines it, the other modules do the work of its subcommands."""

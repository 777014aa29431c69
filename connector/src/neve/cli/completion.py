"""`neve completion`: what a shell needs to complete commands, options and names of contexts."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "fish", "zsh")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete `neve`.

    \b
    bash: add to ~/.bashrc    eval "$(neve completion bash)"
    zsh:  add to ~/.zshrc     eval "$(neve completion zsh)"
    fish: neve completion fish > ~/.config/fish/completions/neve.fish
    """
    made = get_completion_class(shell)
    root = click.get_current_context().find_root().command
    if made is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    click.echo(made(root, {}, "neve", "_NEVE_COMPLETE").source())

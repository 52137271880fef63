"""Every command says what its arguments and options are, and nothing of it is lost on the way to the screen."""

import pytest
import typer.main
from typer.testing import CliRunner

from fedsrd.cli import app


def commands(command, path=()):
    """Every command that does something, with its words."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))
    else:
        yield path, command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_parameter_has_help_and_all_of_it_is_shown(path):
    shown = "".join(
        CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "500", "TERMINAL_WIDTH": "500"}).output.split()
    )
    for parameter in COMMANDS[path].params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        text = getattr(parameter, "help", None)
        assert text, (path, parameter.name)
        assert "".join(text.split()) in shown.replace("│", ""), (path, parameter.name)
    assert COMMANDS[path].help


def test_the_shells_completion_can_be_installed():
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "--install-completion" in shown

"""The command line: parses, calls one workflow, prints. Nothing heavy is imported for `--help`."""

import sys
from collections.abc import Sequence

import typer

from isthmus.cli import artifacts, models, probes, runs, subspaces, sweeps, switches
from isthmus.cli.exit_codes import exit_code
from isthmus.cli.terminal import error_console
from isthmus.core.errors import IsthmusError

app = typer.Typer(
    name="isthmus",
    help="Carry a safety intervention from one language model to another, with evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
organism = typer.Typer(
    help="Make model organisms: small models with a known fault.", no_args_is_help=True
)
app.add_typer(organism, name="organism")

runs.register(app)
sweeps.register(app)
artifacts.register(app)
subspaces.register(app)
probes.register(app)
models.register(app)
switches.register(app)
models.register_organism(organism)


_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with the exit code of what happened.

    Args:
        arguments: Words after the program's name; those of the process when not given.
    """
    try:
        app(args=None if arguments is None else list(arguments))
    except IsthmusError as error:
        error_console().print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(exit_code(error))
    except SystemExit as ended:
        # The parser turns Ctrl-C into this exit code by itself.
        if ended.code == _INTERRUPTED:
            error_console().print("interrupted: nothing half-written was left behind", markup=False)
        raise


if __name__ == "__main__":
    main()

"""vitsal: how far can a Vision Transformer be pushed by showing it only the patches that matter?"""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings

import typer

from vitsal.cli.experiments import benchmark, benchmark_data, drop_curve
from vitsal.cli.frontier import frontier
from vitsal.cli.notebooks import list_recipes, run
from vitsal.cli.pictures import explain, probe, video
from vitsal.cli.students import teach_student, train_student
from vitsal.cli.targets import accelerate, tune_target
from vitsal.errors import UserError, tell

DEBUG = "--debug"  # anywhere on the command line
INTERRUPTED = 130  # as shells have it, and typer
app = typer.Typer(
    help=__doc__,
    epilog=f"{DEBUG}, before or after a command: show the traceback of an error as well.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (explain, video, probe, drop_curve, train_student, teach_student, tune_target, accelerate, frontier):
    app.command()(command)
app.command(context_settings={"ignore_unknown_options": True})(run)
app.command("recipes")(list_recipes)
for command in (benchmark, benchmark_data):
    app.command()(command)


def main() -> None:
    """Run the command line: whatever goes wrong is told in one paragraph on stderr, and ends with status 2.

    With `--debug` the traceback comes before it. Ctrl-C ends with 130, a reader that went away (`| head`) with 1.
    """
    warnings.formatwarning = lambda message, *_: f"Warning: {message}\n"
    try:
        _run([word for word in sys.argv[1:] if word != DEBUG])
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if DEBUG in sys.argv:
            traceback.print_exc()
        print(f"Error: {tell(error)}", file=sys.stderr)
        sys.exit(2)


def _run(words: list[str]) -> None:
    """Run the command line on these words; what is printed is out when it ends."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    if "" in words and "run" not in words:  # of parameters, "" may be a value; of paths, it is the current folder
        raise UserError(
            "One of the words is empty, as a variable is that was never set; leave it out, or give it a value."
        )
    try:
        app(words)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer has caught Ctrl-C
            raise KeyboardInterrupt from ended
        raise
    finally:
        _flush()


def _flush() -> None:
    """Write out what was printed now, while it can still be told if that fails."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at its end
        raise

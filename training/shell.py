"""What every program shares at the shell: one-line errors and quiet libraries."""

import functools
import os
import sys
import tempfile
import traceback

import click


def program(function):
    """Turns expected failures of a click command's body into one line and exit code 2.

    Set KXRAY_TRACEBACK=1 to see where an error came from.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again with --resume where it has one", err=True)
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(141)
        except (ValueError, OSError) as error:
            if os.environ.get("KXRAY_TRACEBACK"):
                traceback.print_exc()
            click.echo(f"error: {one_line(error)}", err=True)
            sys.exit(2)

    return wrapped


def load_tensorflow() -> None:
    """Imports TensorFlow without its start-up chatter, which is shown after all if the import fails."""
    if os.environ.get("KXRAY_TRACEBACK"):
        return
    # Read once, by TensorFlow, while it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
            tf.get_logger().setLevel("ERROR")
        except BaseException:
            chatter.seek(0)
            os.write(terminal, chatter.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def progress_bars(console):
    """Rich progress whose tasks have a `facts` text; silent where nobody watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
        console=console,
        transient=False,
        disable=not console.is_terminal,
    )


def one_line(error: Exception) -> str:
    """An exception's message; an OSError's with its file and without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)

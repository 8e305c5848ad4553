"""`themis new-plugin`: a package that works, to be made one's own."""

from __future__ import annotations

from pathlib import Path

import click

from themis_core.cli.scaffold import KINDS, package


@click.command("new-plugin")
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where to make the package's folder. [default: here]",
)
def new_plugin(kind: str, name: str, into: Path) -> None:
    """Make a plugin of your own.

    A package of the given KIND, which passes its tests as it stands.
    NAME is what configurations will call it. Nothing that exists is written over.
    """
    files = package(kind, name)
    folder = into / name
    try:
        folder.mkdir(parents=True)
        for path, text in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise click.ClickException(f"{str(folder)!r} is there already.") from error
    except OSError as error:
        raise click.ClickException(f"{str(folder)!r} cannot be written: {error}.") from error
    click.echo(f"Wrote {folder}: {KINDS[kind].what}. Next:")
    click.echo(f'  cd {folder}\n  pip install -e ".[test]"\n  pytest')

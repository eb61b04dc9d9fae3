"""activeseg ml-backend: live predictions for tasks that are opened by hand."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from activeseg.cli.output import AsJson, client_of, print_json, workspace_of

if TYPE_CHECKING:
    from activeseg.mlbackend.auth import Login


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ml-backend")(ml_backend)


def ml_backend(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on. [default: ml_backend.host, 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="0 takes a free one. [default: ml_backend.port, 9090]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer Label Studio's calls for predictions by the champion, until Ctrl-C. Callers need user and password.

    A task opened by hand, which no query sent, gets the champion's mask too. Connecting has side effects: see the docs.
    """
    from activeseg.nn.heap import share_heap

    share_heap()  # requests are answered in threads
    from activeseg.listening import open_socket, run, url_of
    from activeseg.mlbackend.answers import Answers
    from activeseg.mlbackend.app import create_app
    from activeseg.mlbackend.auth import login
    from activeseg.mlbackend.champion import Champion
    from activeseg.mlbackend.pictures import Pictures

    with ExitStack() as stack:
        workspace = stack.enter_context(workspace_of(context))
        section = workspace.settings.ml_backend
        wanted = login(workspace.settings)
        where, number = section.host if host is None else host, section.port if port is None else port
        opened = stack.enter_context(
            open_socket(where, number, section="ml_backend", secret="password", explicit=wanted.password.explicit)
        )
        client = stack.enter_context(client_of(workspace))
        champion = Champion(workspace)
        champion.load()
        app = create_app(Answers(champion, Pictures(workspace, client.http if client else None)), wanted)
        version = champion.version()
        if as_json:
            print_json(
                {"url": url_of(opened), "user": wanted.user, "password": wanted.password.place, "model_version": version}
            )
        else:
            _announce(url_of(opened), wanted, version)
        run(app, opened)


def _announce(url: str, wanted: Login, version: str | None) -> None:
    typer.echo(f"predicting at {url} by {version or 'no champion yet'} (Ctrl-C stops it)")
    typer.echo("in Label Studio: project > Settings > Model > Connect Model")
    typer.echo(f"  Backend URL      {url} (as the server reaches it)")
    typer.echo(f"  Authentication   Basic, user {wanted.user}, password in {wanted.password.place}")
    if version is None:
        typer.echo("until a champion is promoted, tasks get no prediction", err=True)

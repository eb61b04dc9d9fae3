"""activeseg serve: the HTTP API and its pages."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from activeseg.cli.output import AsJson, print_json, workspace_of

if TYPE_CHECKING:
    from activeseg.config import OwnSecret


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on. [default: serve.host, 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="0 takes a free one. [default: serve.port, 8090]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how the loop stands, as pages and over HTTP, until Ctrl-C. Everybody needs a token: see `activeseg token`.

    With a webhook configured it also takes Label Studio's hints that annotations changed.
    """
    from activeseg.db import tokens
    from activeseg.hints import HOOK_PATH
    from activeseg.listening import open_socket, run, url_of
    from activeseg.web.app import THREADS, create_app
    from activeseg.web.auth import bearer_token

    with workspace_of(context) as workspace:
        section = workspace.settings.serve
        token = bearer_token(workspace.settings)
        where, number = section.host if host is None else host, section.port if port is None else port
        with workspace.database.read() as session:
            explicit = token.explicit or tokens.any_valid(session)
        remedy = "`activeseg token create NAME`"
        with open_socket(where, number, section="serve", secret="token", explicit=explicit, remedy=remedy) as opened:
            app = create_app(workspace.settings, workspace.database, listening=where)
            hook = url_of(opened) + HOOK_PATH if workspace.settings.webhook_secret() else None
            if as_json:
                print_json({"url": url_of(opened), "token": token.place, "hook": hook})
                # A program that started us waits for this before it connects.
                sys.stdout.flush()
            else:
                _announce(url_of(opened), token)
                if hook:
                    typer.echo(f"hints of Label Studio are taken at {hook}")
            run(app, opened, threads=THREADS)


def _announce(url: str, token: OwnSecret) -> None:
    shell = f"$(cat '{token.file}')" if token.file else f"${token.variable}"
    typer.echo(f"serving {url} (Ctrl-C stops it); log in there with the token in {token.place}")
    typer.echo(f'try     curl -H "Authorization: Bearer {shell}" "{url}/api/rankings?limit=5"')

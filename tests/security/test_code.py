"""What the source does not do, anywhere: shells, pickles, secrets in the text, requests nobody thought about."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from packaging.version import Version

from tests.docs.pages import ROOT

SHELLS = {"sh", "bash", "/bin/sh", "/bin/bash", "cmd", "cmd.exe", "zsh", "dash"}
RUNNERS = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
CLIENTS = {"httpx", "requests", "aiohttp", "urllib3", "smtplib", "ftplib"}
OURS = "labelstudio/server.py"  # one fixed line; what varies goes along as arguments


@cache
def files() -> dict[str, tuple[ast.AST, ...]]:
    """Every node of every file of the package."""
    found = sorted((ROOT / "activeseg").rglob("*.py"))
    return {
        file.relative_to(ROOT / "activeseg").as_posix(): tuple(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        for file in found
    }


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    for name, nodes in files().items():
        yield from ((name, node, ast.unparse(node.func)) for node in nodes if isinstance(node, ast.Call))


def imports() -> Iterator[tuple[str, str]]:
    """Packages from elsewhere that a file imports."""
    for name, nodes in files().items():
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from ((name, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield name, node.module.split(".")[0]


def shell_lines() -> list[tuple[str, list[ast.expr]]]:
    """Argument lists that begin with a shell, and what follows it."""
    return [
        (name, node.elts[1:])
        for name, nodes in files().items()
        for node in nodes
        if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant) and node.elts[0].value in SHELLS
    ]


@pytest.mark.slow
def test_no_command_goes_through_a_shell() -> None:
    for name, call, function in calls():
        assert not any(word.arg == "shell" for word in call.keywords), f"{name}:{call.lineno}"
        known = function.startswith(("os.", "subprocess.", "asyncio."))
        assert not (known and function.split(".")[-1] in RUNNERS), f"{name}:{call.lineno}"
    [(file, (option, script, *_))] = shell_lines()
    assert (file, ast.unparse(option)) == (OURS, "'-c'")
    constants = [node for node in files()[OURS] if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    assert ast.unparse(script) in {ast.unparse(node.targets[0]) for node in constants}, "that line is not put together"


@pytest.mark.slow
def test_nothing_is_unpickled_but_tensors() -> None:
    assert not [found for found in imports() if found[1] in UNPICKLERS]
    loads = [(name, call) for name, call, function in calls() if function in ("torch.load", "np.load", "numpy.load")]
    assert loads
    for name, call in loads:
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        safe = options.get("weights_only") == "True" or options.get("allow_pickle") == "False"
        assert safe, f"{name}:{call.lineno}"
    # A second try without the guard is how others lost it.
    assert not [name for name in files() if "weights_only=False" in (ROOT / "activeseg" / name).read_text(encoding="utf-8")]


@pytest.mark.slow
def test_no_password_or_token_stands_in_the_source() -> None:
    secret = re.compile(r"(password|passwd|secret|token|api_?key)$", re.IGNORECASE)
    for name, nodes in files().items():
        for node in nodes:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                given = isinstance(node.value.value, str) and len(node.value.value) > 7
                named = any(secret.search(ast.unparse(target)) for target in targets)
                assert not (given and named), f"{name}:{node.lineno}"


def test_the_libraries_that_had_known_holes_are_newer_than_those() -> None:
    locked = (ROOT / "uv.lock").read_text(encoding="utf-8")
    for package, first in {"pillow": "12.3", "torch": "2.10"}.items():
        versions = re.findall(rf'name = "{package}"\nversion = "([^"]+)"', locked)
        assert versions
        assert all(Version(version) >= Version(first) for version in versions), f"{package} {versions}"


@pytest.mark.slow
def test_every_place_that_asks_another_machine_is_known() -> None:
    """A new one has to be looked at: whose address, which redirects, how much."""
    assert {name for name, package in imports() if package in CLIENTS} == {
        "fetching.py",  # the guarded way
        "labelstudio/connection.py",  # goes that way, and catches its errors
        *(f"labelstudio/{name}.py" for name in ("http", "deadline", "client", "projects", "accounts")),  # the configured server
        *("labelstudio/server.py", "demo/annotator.py"),  # the demo's own, on the loopback
        *("alerts/webhook.py", "alerts/mail.py"),  # the operator's addresses: no redirects, and the answer is not read
    }
    loaders = ("urlopen", "urlretrieve", "load_state_dict_from_url", "download_url_to_file")
    assert not [name for name, _, function in calls() if function.endswith(loaders)]


def test_the_page_of_the_threat_model_names_the_guards() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for word in ("process of its own", "safetensors", "redirect", "make audit", "make sbom"):
        assert word in page, word

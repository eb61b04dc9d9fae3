"""Behind the wall a file gives what it gives without; one that kills its decoder costs itself and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from activeseg.errors import ConfigError, ImageError, MaskError
from activeseg.imaging import decode, decoder, masks, sandbox, shared_pixels
from activeseg.records import InputPolicy
from tests.imaging.corpus import bad_cases, encode, good_cases, scene

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LIMIT = 10_000_000
POLICY = InputPolicy(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), reduced=True)
GOOD = encode(scene(), "PNG")


@pytest.fixture(autouse=True)
def _no_decoder_of_another_test() -> Iterator[None]:
    yield
    sandbox.close()


def outcome(function, *args, **options):
    try:
        return function(*args, **options)
    except (ImageError, MaskError) as error:
        return type(error), str(error)


def test_every_file_gives_the_pixels_or_the_reason_it_gives_without_the_wall() -> None:
    for case in (*good_cases(), *bad_cases()):
        for name, more in (("probe", {}), ("decode_image", {}), ("decode_mask", {})):
            inside = outcome(getattr(masks if name == "decode_mask" else decode, name), case.data, max_pixels=LIMIT, **more)
            behind = outcome(getattr(sandbox, name), case.data, max_pixels=LIMIT, **more)
            assert type(inside) is type(behind), case.name
            np.testing.assert_equal(behind, inside, err_msg=case.name)


@pytest.mark.parametrize("reduced", [True, False])
def test_an_input_is_that_of_the_process_itself(reduced: bool) -> None:
    policy = InputPolicy(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), reduced=reduced)
    data = encode(scene(120, 80), "JPEG")
    inside, behind = (module.decode_input(data, policy, max_pixels=LIMIT) for module in (decode, sandbox))
    assert inside.size == behind.size
    np.testing.assert_array_equal(inside.pixels, behind.pixels)
    assert behind.pixels.flags.writeable


def test_planes_are_no_index_mask_behind_the_wall_either() -> None:
    data = masks.encode_planes(np.ones((3, 4, 5), np.bool_))
    with pytest.raises(MaskError, match="planes of 3 overlapping classes"):
        sandbox.decode_mask(data, max_pixels=LIMIT)
    with pytest.raises(MaskError, match="1-bit"):
        sandbox.decode_plane(b"BM", max_pixels=LIMIT)


def replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """Decoders do `body` instead of decoding, where a file says KILL."""
    monkeypatch.setattr(
        sandbox,
        "_START",
        "import sys; sys.path.append(sys.argv[2]); import os, time\n"
        "from activeseg.imaging import decoder\n"
        "true = decoder.decode_sized\n"
        "def hostile(data, *args, **options):\n"
        f"    if b'KILL' in data:\n        {body}\n"
        "    return true(data, *args, **options)\n"
        "decoder.decode_sized = hostile\n"
        f"decoder.CPU_SECONDS = 1\n"
        "decoder.main(int(sys.argv[1]))",
    )
    sandbox.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.kill(os.getpid(), 11)", r"its decoder died over it \(SIGSEGV\)"),
        ("os.abort()", r"its decoder died over it \(SIGABRT\)"),
        ("os._exit(3)", r"its decoder died over it \(exit status 3\)"),
        ("os.kill(os.getpid(), 9)", f"killed, as where memory runs out: it is {sandbox.LOOK_AGAIN}"),
        ("x = bytearray(1 << 40)", "takes more memory than its pixels can need"),
        ("while True: pass", "more than 60 s of processor time"),
        ("os.write(3, b'x' * 4096); os._exit(0)", "its decoder died"),
    ],
)
def test_what_kills_its_decoder_has_a_reason_and_the_next_image_is_decoded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, reason: str
) -> None:
    replaced(monkeypatch, tmp_path, body)
    with pytest.raises(ImageError, match=reason):
        sandbox.decode_image(GOOD + b"KILL", max_pixels=LIMIT)
    np.testing.assert_array_equal(sandbox.decode_image(GOOD, max_pixels=LIMIT), scene())


@pytest.mark.slow
def test_one_that_waits_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replaced(monkeypatch, tmp_path, "time.sleep(1000)")
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 0.5)
    with pytest.raises(ImageError, match=f"no answer in time and was given up: it is {sandbox.LOOK_AGAIN}"):
        sandbox.decode_image(GOOD + b"KILL", max_pixels=LIMIT)


def test_an_image_that_was_given_up_is_not_kept_in_memory() -> None:
    # An error that is raised twice keeps the frames of both, and what they hold.
    assert sandbox._end_of(-signal.SIGXCPU) is not sandbox._end_of(-signal.SIGXCPU)


def test_a_death_that_does_not_come_again_costs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.touch()
    replaced(monkeypatch, tmp_path, "os.kill(os.getpid(), 9)")
    data = GOOD + b"KILL"
    sandbox.decode_image(GOOD, max_pixels=LIMIT)  # a hostile decoder waits; the next one is started without the trick
    monkeypatch.undo()
    np.testing.assert_array_equal(sandbox.decode_image(data, max_pixels=LIMIT), scene())


def lies(monkeypatch: pytest.MonkeyPatch, reply: str, first: str = "") -> None:
    """Decoders answer with these bytes, whatever they are asked. first: lines of their program before that."""
    monkeypatch.setattr(
        sandbox,
        "_START",
        "import sys; sys.path.append(sys.argv[2]); from activeseg.imaging.decoder import *\n"
        f"import os\n{first}os.write(1, REPLY.pack(READY, 0, 0, 0, 0, 0, 0))\n"
        f"while os.read(0, 1 << 16): os.write(1, {reply})",
    )
    sandbox.close()


@pytest.mark.parametrize(
    "reply",
    [
        "REPLY.pack(DONE, 2**31, 2**31, 2**31, 2**31, 0, 0)",
        "REPLY.pack(DONE, 0, 0, 0, 0, 0, 0)",
        "REPLY.pack(DONE, 8, 8, 8, 8, 99, 0)",
        "REPLY.pack(DONE, 8, 8, 8, 8, 0, 2**32 - 1)",
        "REPLY.pack(77, 8, 8, 8, 8, 0, 0)",
    ],
)
def test_a_decoder_that_was_taken_over_can_say_nothing_that_harms(monkeypatch: pytest.MonkeyPatch, reply: str) -> None:
    lies(monkeypatch, reply)
    with pytest.raises(ImageError):
        sandbox.decode_image(GOOD, max_pixels=LIMIT)


def test_a_decoder_knows_no_secret_opens_nothing_and_makes_no_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACTIVESEG_LABELSTUDIO__TOKEN", "s3cret-token")
    sandbox.probe(GOOD, max_pixels=LIMIT)
    [waiting] = sandbox._decoders._waiting
    process = Path(f"/proc/{waiting.process.pid}")
    assert b"s3cret" not in (process / "environ").read_bytes()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in (process / "limits").read_text().splitlines()[1:]}
    for name in ("Max core file size", "Max file size", "Max open files"):
        assert limits[name] == ["0", "0"], name
    assert int(limits["Max address space"][0]) < 4 * 2**30
    assert int(limits["Max cpu time"][0]) <= decoder.CPU_SECONDS + 5


@pytest.mark.slow
def test_a_decoder_ends_with_the_process_that_asked_it() -> None:
    code = (
        "import os, sys; from activeseg.imaging import sandbox\n"
        f"sandbox.probe({GOOD!r}, max_pixels=10**6)\n"
        "print(sandbox._decoders._waiting[0].process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    pid = int(killed.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
            return
        signal.sigtimedwait([], 0.1)
    raise AssertionError(f"decoder {pid} outlived its caller")


def as_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what only Linux has."""
    sandbox.close()
    monkeypatch.delattr(shared_pixels.os, "memfd_create", raising=False)
    monkeypatch.delattr(shared_pixels.mmap, "MADV_REMOVE", raising=False)
    for name in ("F_ADD_SEALS", "F_SEAL_SHRINK"):
        monkeypatch.delattr(shared_pixels.fcntl, name, raising=False)


def test_images_are_decoded_behind_the_wall_where_no_memory_can_be_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_macos(monkeypatch)
    for size in ((40, 30), (7, 5), (40, 30)):
        data = encode(scene(*size), "PNG")
        np.testing.assert_array_equal(sandbox.decode_image(data, max_pixels=LIMIT), scene(*size))
    assert sandbox._decoders._waiting[0]._shared._view is None
    with pytest.raises(ImageError):
        sandbox.decode_image(b"no image", max_pixels=LIMIT)
    with pytest.raises(ConfigError, match="bytes to share"):
        sandbox.probe(GOOD, max_pixels=10**17)


@pytest.mark.slow
@pytest.mark.parametrize(
    "linux", [pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="seals")), False]
)
def test_a_decoder_that_cuts_the_shared_memory_off_does_not_take_this_process_along(linux: bool) -> None:
    # In a process of its own, which it would end by SIGBUS.
    test = (
        "import pytest; from activeseg.errors import ImageError; from activeseg.imaging import sandbox\n"
        "from tests.imaging.test_sandbox import GOOD, LIMIT, as_on_macos, lies\n"
        "patch = pytest.MonkeyPatch()\n"
        f"{'pass' if linux else 'as_on_macos(patch)'}\n"
        "lies(patch, 'cut() or REPLY.pack(DONE, 8, 8, 8, 8, 0, 0)', 'def cut():\\n'\n"
        "    '    try: os.ftruncate(int(sys.argv[1]), 0)\\n    except OSError: pass\\n')\n"
        "try: print(sandbox.decode_image(GOOD, max_pixels=LIMIT).max())\n"
        "except ImageError as error: print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", test], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert (ended.returncode, ended.stdout) == (0, "0\n" if linux else f"{sandbox._IMPOSSIBLE}\n"), ended.stderr


def test_threads_get_their_own_pixels() -> None:
    sizes = [(7 + number, 5 + number) for number in range(24)]
    files = [encode(scene(*size), "PNG") for size in sizes]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda data: sandbox.decode_image(data, max_pixels=LIMIT), files))
    for size, pixels in zip(sizes, found, strict=True):
        np.testing.assert_array_equal(pixels, scene(*size))


def test_a_larger_limit_than_before_is_met() -> None:
    sandbox.probe(GOOD, max_pixels=48 * 32)
    large = scene(400, 300)
    np.testing.assert_array_equal(sandbox.decode_image(encode(large, "PNG"), max_pixels=400 * 300), large)


def test_where_no_process_can_be_started_no_image_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "executable", "/nowhere/python")
    with pytest.raises(ConfigError, match="no process for decoding"):
        sandbox.probe(GOOD, max_pixels=LIMIT)
    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "_START", "raise SystemExit(1)")
    with pytest.raises(ConfigError, match="does not start"):
        sandbox.probe(GOOD, max_pixels=LIMIT)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="no 300000000000000000 bytes to share"):
        sandbox.probe(GOOD, max_pixels=10**17)


STRIP = encode(np.zeros((1, 30_000, 3), np.uint8), "PNG")


@pytest.mark.parametrize("reduced", [True, False])
def test_a_strip_that_grows_without_end_at_the_networks_size_is_refused(reduced: bool) -> None:
    policy = InputPolicy(512, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), reduced=reduced)
    for module in (decode, sandbox):
        with pytest.raises(ImageError, match=r"short_side = 512.*raise \[pool\] max_pixels"):
            module.decode_input(STRIP, policy, max_pixels=LIMIT)
    with pytest.raises(ImageError, match="short_side"):
        sandbox.probe(STRIP, max_pixels=LIMIT, policy=policy)

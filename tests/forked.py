"""Processes forked from one that has everything imported but never used it: a start costs milliseconds, not seconds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

CONTEXT = multiprocessing.get_context("forkserver")
# One list for the whole suite: there is one such process, and only the last list given counts.
CONTEXT.set_forkserver_preload(
    [
        "torch",
        "pytest",
        "label_studio_sdk.client",
        "activeseg.loop",
        "activeseg.stages.train",
        "tests.backtest.worker",
        "tests.loop.worker",
        "tests.loop.pull_worker",
        "tests.stages.scoring_worker",
        "tests.stages.training_worker",
    ]
)


def exit_status(work: Callable[..., None], *arguments: object, **options: object) -> int:
    """Exit status of a process that does `work`; minus the number of the signal that killed it."""
    process = CONTEXT.Process(target=work, args=arguments, kwargs=options)
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the worker hangs"
    return process.exitcode

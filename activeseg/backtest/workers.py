"""Processes that compute units: one thread of the network in each, which on a CPU gets more done than one with all of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from activeseg.backtest.replay import compute
from activeseg.backtest.task import Place, Task
from activeseg.backtest.units import Unit
from activeseg.nn.device import pick_device


def default_workers(device: str) -> int:
    """Processes where nobody asks for another number: one for each core this process may use, one on a GPU."""
    if pick_device(device).type != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew:
    """Computes units in processes of its own, or, where `workers` is 1, in this one."""

    def __init__(self, executor: Executor, steps: Any) -> None:
        self._executor, self._steps = executor, steps

    def submit(self, task: Task) -> Future[Unit]:
        """Begin a unit."""
        return self._executor.submit(_perform, task)

    @property
    def steps(self) -> int:
        """Optimiser steps done so far, by all units together; those that needed none count as done when they end."""
        return int(self._steps.value)


@contextmanager
def crew(place: Place, workers: int) -> Iterator[Crew]:
    """Processes for the block. They end with it, also when this process is killed, whatever they are at."""
    context = multiprocessing.get_context("spawn")
    steps = context.Value("q", 0)
    threads = torch.get_num_threads()
    if workers == 1:
        _begin(place, steps, None)
        try:
            yield Crew(_Here(), steps)
        finally:
            torch.set_num_threads(threads)
        return
    leash, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(place, steps, leash))
    try:
        yield Crew(pool, steps)
    finally:
        # Whoever is still at work is not waited for: a unit that was begun goes on next time.
        end.close()
        pool.shutdown(wait=True, cancel_futures=True)
        leash.close()


class _Here(Executor):
    """Runs what is submitted at once."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Process:
    """What a worker was started with."""

    place: Place
    steps: Any


def _begin(place: Place, steps: Any, leash: Connection | None) -> None:
    _Process.place, _Process.steps = place, steps
    if pick_device(place.settings.model.device).type == "cpu":
        torch.set_num_threads(1)
    if leash is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(leash,), name="leash", daemon=True).start()


def _end_with(leash: Connection) -> None:
    """End this process when the other end of the pipe is closed, by its holder or by that one's death."""
    try:
        leash.recv()
    except EOFError:
        pass
    finally:
        os._exit(1)


def _perform(task: Task) -> Unit:
    counted = 0

    def count(done: int) -> None:
        nonlocal counted
        with _Process.steps.get_lock():
            _Process.steps.value += done - counted
        counted = done

    unit = compute(_Process.place, task, count)
    if task.trains:
        count(task.steps)
    return unit

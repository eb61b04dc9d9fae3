"""When the loop runs.

jobs.py       what runs: the jobs of [schedule]
scheduler.py  when it runs: planned times, requests, what was cut off
runs.py       what became of it: claims, beats, logs, outcomes
"""

from activeseg.scheduler.jobs import CheckStop, Job, Stopped, loop_jobs, watcher
from activeseg.scheduler.runs import JobResult
from activeseg.scheduler.scheduler import Scheduler

__all__ = ["CheckStop", "Job", "JobResult", "Scheduler", "Stopped", "loop_jobs", "watcher"]

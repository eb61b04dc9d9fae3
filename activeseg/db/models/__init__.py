"""The tables, one file per part of the loop.

pool        label_sets, images                              written by stages.pool, dataset import
scoring     checkpoints, scoring_configs, scoring_runs,     stages.train, stages.score
            scores, class_scores, embedders, embeddings
rounds      rounds, queries, predictions, annotations       loop, stages.rank, stages.push, stages.pull
labeling    labeling_projects, tasks, push_journal          stages.push, stages.pull
training    training_runs, training_run_annotations,        stages.train, stages.promote
            evaluations, promotions
backtest    backtests, backtest_units                       backtest
operations  requests, schedule_slots, job_runs, leases,     cli, web, scheduler, loop
            alerts, tokens                                  alerts, cli
"""

from activeseg.db.models.backtest import Backtest, BacktestUnit
from activeseg.db.models.columns import Model
from activeseg.db.models.labeling import JournalState, LabelingProject, PushJournal, Task, TaskStatus
from activeseg.db.models.operations import Alert, JobOutcome, JobRun, Lease, RequestRow, ScheduleSlot, Token
from activeseg.db.models.pool import Image, ImageStatus, LabelSetRow, Split
from activeseg.db.models.rounds import (
    Annotation,
    AnnotationSource,
    AnnotationStatus,
    Arm,
    Prediction,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
)
from activeseg.db.models.scoring import Checkpoint, ClassScoreRow, Embedder, Embedding, Score, ScoringConfig, ScoringRun
from activeseg.db.models.training import (
    ALL_CLASSES,
    Decision,
    Evaluation,
    Promotion,
    TrainingRun,
    TrainingRunAnnotation,
    TrainingStatus,
)

__all__ = [
    "ALL_CLASSES",
    "Alert",
    "Annotation",
    "AnnotationSource",
    "AnnotationStatus",
    "Arm",
    "Backtest",
    "BacktestUnit",
    "Checkpoint",
    "ClassScoreRow",
    "Decision",
    "Embedder",
    "Embedding",
    "Evaluation",
    "Image",
    "ImageStatus",
    "JobOutcome",
    "JobRun",
    "JournalState",
    "LabelSetRow",
    "LabelingProject",
    "Lease",
    "Model",
    "Prediction",
    "Promotion",
    "PushJournal",
    "Query",
    "QueryStatus",
    "RequestRow",
    "Round",
    "RoundStatus",
    "ScheduleSlot",
    "Score",
    "ScoringConfig",
    "ScoringRun",
    "Split",
    "Task",
    "TaskStatus",
    "Token",
    "TrainingRun",
    "TrainingRunAnnotation",
    "TrainingStatus",
]

"""The presets of [training]: what they resolve to, and that what is set beats them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from activeseg.config import TrainingSection, load_settings

DOCUMENTS = {
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "batch_size": 64,
    "crop": (224, 224),
    "augment": "none",
    "color_jitter": 0.0,
    "schedule": "constant",
    "warmup_steps": 0,
    "clip_norm": 0.0,
    "ema_decay": 0.0,
    "head_lr_factor": 1.0,
    "class_weights": "none",
    "epochs": 70,
    "validate_every": 0,
    "patience": 0,
}


def test_the_documents_recipe_resolves_to_the_documents_values() -> None:
    resolved = TrainingSection(recipe="documents").model_dump()
    assert {key: resolved[key] for key in DOCUMENTS} == DOCUMENTS
    assert TrainingSection(recipe="documents").planned_steps(367) == 402  # 70 passes over 367 images, 64 at a time


def test_the_modern_recipe_is_the_defaults() -> None:
    assert TrainingSection(recipe="modern") == TrainingSection()
    assert TrainingSection().planned_steps(5) == TrainingSection().planned_steps(5000) == TrainingSection().steps


def test_what_is_set_beats_the_recipe() -> None:
    section = TrainingSection(recipe="documents", batch_size=8, ema_decay=0.5)
    assert (section.batch_size, section.ema_decay, section.learning_rate) == (8, 0.5, 0.01)


def test_set_steps_are_not_overruled_by_the_recipes_epochs() -> None:
    assert TrainingSection(recipe="documents", steps=5).planned_steps(367) == 5
    assert TrainingSection(steps=5, epochs=2, batch_size=4).planned_steps(10) == 5  # 20 images, 4 at a time


@pytest.mark.parametrize("given", [{}, {"recipe": "documents"}, {"recipe": "documents", "steps": 5}, {"epochs": 3}])
def test_a_recorded_section_reads_back_the_same(given: dict[str, object]) -> None:
    section = TrainingSection.model_validate(given)
    assert TrainingSection.model_validate(section.model_dump(mode="json")) == section


def test_file_and_environment_reach_the_recipe_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "activeseg.toml").write_text('[training]\nrecipe = "documents"\nepochs = 170\n', encoding="utf-8")
    monkeypatch.setenv("ACTIVESEG_TRAINING__BATCH_SIZE", "16")
    training = load_settings(tmp_path / "activeseg.toml").training
    assert (training.epochs, training.batch_size, training.crop) == (170, 16, (224, 224))
    monkeypatch.setenv("ACTIVESEG_TRAINING__RECIPE", "modern")
    assert load_settings(tmp_path / "activeseg.toml").training.crop == TrainingSection().crop


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValidationError, match="modern"):
        TrainingSection(recipe="ancient")


def test_pseudo_labels_need_an_averaged_network() -> None:
    with pytest.raises(ValidationError, match="unlabelled = 'pseudo' asks the averaged network: set ema_decay"):
        TrainingSection(recipe="documents", unlabelled="pseudo")
    assert TrainingSection(recipe="documents", unlabelled="pseudo", ema_decay=0.99).unlabelled == "pseudo"

"""A card says what the run's own files say, in a form that the hub reads."""

import re
import shutil

import yaml
from huggingface_hub import ModelCard

from ensemw2s.evaluation.records import RunResults
from ensemw2s.publishing.card import Origin, base_of, card


def test_the_card_of_a_student_has_its_figures_its_base_and_its_licence(run, base):
    text = card(Origin.of(run / "students/student_ensemw2s"), merged=True)
    read, results = ModelCard(text), RunResults.read(run / "results.json")
    student = results.systems["student_ensemw2s"]
    assert student.ood is not None
    assert student.ood.ci95 is not None
    low, high = (f"{100 * end:.1f}" for end in student.ood.ci95)
    assert f"| {100 * student.ood.exact_match:.1f}\N{NO-BREAK SPACE}% | {low}–{high} | {student.ood.n} |" in text
    assert f"| `{base}` | apache-2.0 |" in text
    assert "`'Q: {prompt}\\nA:'`" in text
    assert (read.data.license, read.data.library_name) == ("apache-2.0", "transformers")
    assert [found.metric_value for found in read.data.eval_results] == [
        student.id.exact_match, student.ood.exact_match,
    ]  # fmt: skip
    assert not re.search(r"\bNone\b|nan", text)


def test_a_base_of_the_hub_is_named_in_the_metadata_and_a_folder_is_not(run, base, monkeypatch, tmp_path):
    student = run / "students/student_ensemw2s"
    assert ModelCard(card(Origin.of(student))).data.base_model is None
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["models"]["strong"]["base"] = "some-org/no-such-model"
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = ModelCard(card(Origin.of(student))).data
    assert (data.base_model, data.license) == ("some-org/no-such-model", None)
    assert "| `some-org/no-such-model` | not stated |" in card(Origin.of(student))


def test_solved_examples_before_a_prompt_are_shown_whole(run):
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["data"]["shots"] = 1
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    (run / "data").mkdir()
    (run / "data/prompt_template.txt").write_text("Q: 2 1\nA: 1 2\n\nQ: {prompt}\nA:")
    text = card(Origin.of(run / "students/student_ensemw2s"))
    assert "```text\nQ: 2 1\nA: 1 2\n\nQ: {prompt}\nA:\n```" in text


def test_an_ensemble_names_its_weak_bases_and_how_to_load_it(run):
    text = card(Origin.of(run / "ensemble"))
    assert "Ensemble.from_pretrained" in text
    assert "| `tiny-weak` | not stated |" in text
    assert ModelCard(text).data.library_name == "ensemw2s"
    assert base_of("tiny-weak").on_hub is False


def test_a_folder_that_has_left_its_run_says_what_it_does_not_know(run, tmp_path):
    shutil.copytree(run / "students/student_ensemw2s", tmp_path / "alone")
    text = card(Origin.of(tmp_path / "alone"))
    assert "does not say what data it was trained on" in text
    assert "Find that out before you publish it" in text

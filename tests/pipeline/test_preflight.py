"""What is refused before anything starts. (That a good config passes is the first test; each other one breaks it.)"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.config import Config, parse_config
from ensemw2s.errors import ConfigError, DataError, ModelError, ResourceError
from ensemw2s.models import loading, tiny
from ensemw2s.models.tokenizers import load_tokenizer
from ensemw2s.pipeline import preflight, run

DIGITS = "0 1 2 3 4 5 6 7 8 9 + ="


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """No cluster in the environment, and two cores here."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Two ready models of one tokenizer, and one of another."""
    root = tmp_path_factory.mktemp("models")
    for name, text in (("one", DIGITS + " sort"), ("two", DIGITS + " sort"), ("odd", DIGITS + " quite other words")):
        tokenizer = tiny.train_tokenizer([text] * 9, 64)
        loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, 0), tokenizer, root / name)
    return {name: str(root / name) for name in ("one", "two", "odd")}


@pytest.fixture
def make(tmp_path):
    rows = [{"prompt": f"{i} + 1 =", "answer": str(i + 1), "level": i} for i in range(20)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(weak: list[str] | None = None, strong: str = "tiny-strong", **sections: Any) -> Config:
        data = {
            "source": {"kind": "files", "paths": [str(file)], "columns": {"difficulty": "level"}},
            "split": {"mode": "difficulty", "difficulty_from": "column"},
            "sizes": {"easy_train": 4, "easy_validation": 2, "id_test": 2, "hard_unlabelled": 4, "ood_test": 2},
        }
        return parse_config(
            {
                "name": "study",
                "storage": str(tmp_path / "runs"),
                "models": {"weak": [{"base": base} for base in weak or ["tiny-weak"]], "strong": {"base": strong}},
                **sections,
                "data": data | sections.get("data", {}),
            }
        )

    return config


def test_good_configs_pass_and_leave_nothing_behind(make, models, tmp_path):
    preflight.check(make())
    preflight.check(make([models["one"], models["two"]], models["odd"]))
    preflight.check(make([models["one"]], "tiny-strong"))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(("most", "rate", "said"), [(1000, None, 1), (1000, 0.0002, 0), (10_000_000, None, 0)])
def test_a_large_model_with_the_learning_rate_of_tiny_ones_is_warned_of(
    make, models, monkeypatch, caplog, most, rate, said
):
    monkeypatch.setattr(preflight, "LARGE", most)
    preflight.check(make([models["one"]], **({} if rate is None else {"expert": {"learning_rate": rate}})))
    assert caplog.text.count("expert.learning_rate is 0.001, the default for models of 30 thousand parameters") == said


def test_a_missing_column_is_found(make):
    columns = {"prompt": "question", "difficulty": "level"}
    source = {"kind": "files", "paths": make().data.source.paths, "columns": columns}
    with pytest.raises(
        DataError, match=r"has no column 'question' \(columns.prompt\); columns present: prompt, answer"
    ):
        preflight.check(make(data={"source": source}))


def test_a_template_of_the_corpus_that_rows_cannot_fill_is_found_where_a_tiny_model_reads_it(make, models):
    pretraining = {"corpus": {"templates": ["{{ metadata.numbers }}"]}}
    bases = {"weak": [{"base": models["one"]}], "strong": {"base": models["one"]}, "pretraining": pretraining}
    preflight.check(make(models=bases))
    with pytest.raises(DataError, match=r"models.pretraining.corpus.templates: '{{ metadata.numbers }}' failed"):
        preflight.check(make(models={**bases, "strong": {"base": "tiny-strong"}}))


def test_a_missing_model_is_named_with_its_place(make, tmp_path):
    with pytest.raises(ModelError, match=r"models: weak-0: model \./nowhere: there is no such folder"):
        preflight.check(make(["./nowhere"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"models: strong: folder .*empty is no model: config.json is missing"):
        preflight.check(make(strong=str(tmp_path / "empty")))


def test_a_model_without_a_tokenizer_is_named_with_its_place(make, models, tmp_path):
    shutil.copytree(models["one"], tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelError, match=r"models: strong: folder .*mute holds no tokenizer"):
        preflight.check(make(strong=str(tmp_path / "mute")))


def test_weak_models_may_have_different_tokenizers(make, models):
    preflight.check(make([models["one"], models["odd"]]))
    preflight.check(make(["tiny-weak", models["one"]]))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"boosting": {"prior": "samme"}}, "boosting.prior samme"),
        ({"boosting": {"unit": "window"}}, "boosting.unit window"),
        ({"boosting": {"anchor": 0.5}}, r"boosting.anchor 0\.5"),
        ({"consensus": {"passes": 1}}, "consensus.passes 1"),
        ({"ensemble": {"combine": "vote"}}, "ensemble.combine vote"),
        ({"ensemble": {"combine": "log_probability"}}, "ensemble.combine log_probability"),
        ({"ensemble": {"weights": "stacked"}}, "ensemble.weights stacked"),
        ({"ensemble": {"calibration": "temperature"}}, "ensemble.calibration temperature"),
        ({"student": {"objective": "soft"}, "labeling": {"soft_top_k": 4}}, "student.objective soft"),
        ({"labeling": {"soft_top_k": 4}}, "labeling.soft_top_k 4"),
        ({"labeling": {"speculation": "ngram"}}, "labeling.speculation ngram"),
    ],
)
def test_what_bytes_cannot_have_is_refused_by_name(make, models, section, said):
    with pytest.raises(ConfigError, match=rf"have different tokenizers(.|\n)*{said}"):
        preflight.check(make([models["one"], models["odd"]], **section))


def test_options_are_not_compared_over_bytes(make, models, tmp_path):
    rows = [{"prompt": f"{i} + 1 =", "answer": "A", "options": [str(i + 1), str(i)], "level": i} for i in range(20)]
    (tmp_path / "options.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"difficulty": "level", "choices": "options", "multiple_choice": {}}
    data = {"source": {"kind": "files", "paths": [str(tmp_path / "options.jsonl")], "columns": columns}}
    with pytest.raises(ConfigError, match=r"have different tokenizers(.|\n)*multiple_choice"):
        preflight.check(make([models["one"], models["odd"]], data=data))


def test_an_own_vocabulary_is_for_tiny_weak_models_alone(make, models):
    bases = {"weak": [{"base": models["one"], "vocabulary": 64}], "strong": {"base": "tiny-strong"}}
    with pytest.raises(ConfigError, match=r"models: weak-0: vocabulary is 64, but .* is no tiny-weak"):
        preflight.check(make(models=bases))


SOFT = {"student": {"objective": "soft"}, "labeling": {"soft_top_k": 4}}


@pytest.mark.parametrize(
    ("weak", "strong", "fits"),
    [
        ("tiny-weak", "tiny-strong", True),
        ("one", "two", True),
        ("one", "odd", False),
        ("one", "tiny-strong", False),
        ("tiny-weak", "one", False),
    ],
)
def test_soft_labels_need_one_tokenizer_for_weak_and_strong(make, models, weak, strong, fits):
    config = make([models.get(weak, weak)], models.get(strong, strong), **SOFT)
    if fits:
        preflight.check(config)
    else:
        with pytest.raises(
            ConfigError, match=r"student.objective soft needs weak and strong models with the same tokenizer"
        ):
            preflight.check(config)


def test_a_chat_template_must_be_there_before_hours_of_training(make, models, tmp_path):
    chat = {"data": {"chat_template": True}}
    with pytest.raises(
        ConfigError, match=r"data.chat_template is true, but embedded tiny models have no chat template"
    ):
        preflight.check(make(**chat))
    with pytest.raises(ModelError, match=r"data.chat_template is true, but the tokenizer of .* has no chat template"):
        preflight.check(make([models["one"]], models["one"], **chat))
    tokenizer = loading.load_tokenizer(models["one"])
    tokenizer.chat_template = "{% for m in messages %}<bos>{{ m.content }}{% endfor %}"
    loading.save_trained(loading.load_causal_lm(models["one"]), tokenizer, tmp_path / "chat")
    preflight.check(make([str(tmp_path / "chat")], str(tmp_path / "chat"), **chat))


def test_what_this_machine_can_never_hold_is_refused_unless_there_is_a_cluster(make, monkeypatch):
    big = make(training={"workers": 64})
    with pytest.raises(ResourceError, match=r"training.workers asks for 64 workers .* 1 node, 2 CPUs"):
        preflight.check(big)
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    preflight.check(big)


def test_storage_that_is_a_file_is_refused(make, tmp_path):
    (tmp_path / "file").write_text("x")
    for storage in ("file", "file/below"):
        with pytest.raises(
            ResourceError, match=r"storage .*file.* is not a writable folder; set storage to another one"
        ):
            preflight.check(make(storage=str(tmp_path / storage)))


def test_a_full_disk_is_refused(make, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "free_bytes", lambda path: 0 if path == tmp_path else 1)
    with pytest.raises(ResourceError, match=rf"storage .*: there is no space left on the disk of {tmp_path};"):
        preflight.check(make())


def test_storage_that_cannot_be_written_is_refused(make, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ResourceError, match=rf"storage .*: {tmp_path} is not a writable folder"):
        preflight.check(make())


def test_storage_in_a_bucket_is_looked_for_and_nothing_is_left_there(make, bucket, tmp_path):
    preflight.check(make(storage=f"s3://{bucket.name}/runs"))
    assert bucket.objects() == {}
    assert not (tmp_path / "scratch").exists()
    with pytest.raises(ResourceError, match="s3://nobodys/runs/study: there is no bucket nobodys"):
        preflight.check(make(storage="s3://nobodys/runs"))
    with pytest.raises(ConfigError, match="expected a folder, or BUCKET/KEY after one of s3://"):
        preflight.check(make(storage="hdfs://somewhere/runs"))


def test_mlflow_cannot_write_its_folder_into_a_bucket(make, bucket, monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"needs a server: set tracking\.uri"):
        preflight.check(make(storage=f"s3://{bucket.name}/runs", tracking="mlflow"))
    preflight.check(make(storage=f"s3://{bucket.name}/runs", tracking={"kind": "mlflow", "uri": "http://there"}))


def test_free_bytes_are_those_of_the_nearest_folder_that_exists(tmp_path):
    there = preflight.free_bytes(tmp_path)
    assert there > 0
    assert abs(preflight.free_bytes(tmp_path / "not" / "yet") - there) < 2**30


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_tracking_by_a_package_that_is_not_here_is_refused(make, monkeypatch, kind):
    config = make(tracking=kind)
    preflight.check(config)
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install -e '\.\[{kind}\]'"):
        preflight.check(config)


@pytest.mark.parametrize(("checked", "said"), [(False, "checked"), (True, "went on")])
def test_a_run_checks_its_config_once(checked, said, make, monkeypatch):
    def raising(text: str) -> Any:
        def call(*_: Any) -> None:
            raise ConfigError(text)

        return call

    monkeypatch.setattr(preflight, "check", raising("checked"))
    monkeypatch.setattr(run, "build_graph", raising("went on"))
    with pytest.raises(ConfigError, match=said):
        run.run(make(), checked=checked)


@pytest.mark.slow
def test_a_driver_that_starts_and_draws_nothing_imports_no_ray_no_torch_and_no_matplotlib():
    code = (
        "import sys\n"
        "names = ('ray', 'torch', 'transformers', 'peft', 'deepspeed', 'matplotlib', 'pandas', 'scipy')\n"
        "sys.modules.update(dict.fromkeys(names))\n"  # None: no import
        "import ensemw2s.pipeline.plan, ensemw2s.pipeline.preflight, ensemw2s.pipeline.run\n"
        "import ensemw2s.training.checkpoints"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.fixture(scope="module")
def padded(models, tmp_path_factory) -> str:
    """The first model with 32 rows more in its output layer than its tokenizer has tokens."""
    tokenizer = load_tokenizer(models["one"])
    model = tiny.create_tiny("tiny-weak", tokenizer, 0)
    model.resize_token_embeddings(len(tokenizer) + 32)
    path = tmp_path_factory.mktemp("padded") / "one"
    loading.save_trained(model, tokenizer, path)
    return str(path)


def test_padded_output_layers_are_refused_where_votes_soft_labels_or_drafts_need_one_size(make, models, padded):
    soft = {"student": {"objective": "soft"}, "labeling": {"soft_top_k": 4}}
    draft = {"labeling": {"speculation": padded}}
    preflight.check_models(make([padded, padded], models["one"]))
    preflight.check_models(make([models["one"]], padded, **soft))
    for wrong, said in (
        (make([models["one"], padded], models["one"]), "Experts vote on token ids"),
        (make([padded], models["one"], **soft), "soft labels are distributions over these"),
        (make([models["one"]], models["one"], **draft), "a draft needs as many"),
    ):
        with pytest.raises(ModelError, match=rf"{said}.*resize_token_embeddings"):
            preflight.check_models(wrong)

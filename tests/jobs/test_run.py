"""The jobs on a cluster with a token: a killed run that is submitted again, and what its ensemble is then used for."""

import contextlib
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ensemw2s.env import LOG
from ensemw2s.progress import stage_metrics

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

ROOT = Path(__file__).parents[2]
HALF_WAY = 64 + 30
"""The step of a run's trainings that lies in the second round: an expert has 64."""

SAME = ("rounds/*/errors.parquet", "rounds/**/*.safetensors", "ensemble/**/*", "labels/*.parquet")


@pytest.fixture(scope="module")
def head(start_head):
    return start_head("--num-cpus=2")


@pytest.fixture(scope="module")
def study(module_workplace, own_jsonl):
    own = {"evaluation.systems": ["ensemw2s", "student_ensemw2s"]}
    return module_workplace.study(own_jsonl, **own)


def stages_in(page: str) -> dict[tuple[str, str], float]:
    """Seconds of each stage that a page of metrics tells of, by run and stage."""
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {
        (sample.labels["run"], sample.labels["stage"]): sample.value
        for sample in samples
        if sample.name == f"ray_{stage_metrics.SECONDS}"
    }


@pytest.fixture(scope="module")
def run(head, study, module_workplace, undisturbed):
    """The folder of a run whose driver was killed half way, and that was submitted again."""
    module_workplace.take_storage(undisturbed, only_cache=True)
    command = ("python", "jobs/run.py", "--config", study)
    module_workplace.faults.plan(f"training/step@{HALF_WAY}=hang")
    first = head.start(*command)
    [discovery] = yaml.safe_load((ROOT / "cluster/prometheus.yaml").read_text())["scrape_configs"][0]["http_sd_configs"]
    head.wait_until_reached(module_workplace.faults, "training/step", HALF_WAY, first)
    # the driver tells of the second round for as long as nobody has seen that it does
    head.stages, until = {}, time.monotonic() + 200
    while "rounds/2" not in {stage for _, stage in head.stages}:
        assert time.monotonic() < until, head.stages
        time.sleep(1)  # as often as Ray reports on this cluster
        with contextlib.suppress(requests.RequestException):
            head.stages |= stages_in(head.metrics(urlsplit(discovery["url"]).path))
    head.kill("jobs/run.py")
    output, _ = first.communicate(timeout=60)
    assert first.returncode != 0, output
    assert not (module_workplace.run_folder / "labels/.complete.json").exists()
    first_round = (module_workplace.run_folder / "rounds/1/.complete.json").stat().st_mtime_ns
    output = head.done("env", f"{LOG.name}=json", *command)
    head.lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert (module_workplace.run_folder / "rounds/1/.complete.json").stat().st_mtime_ns == first_round
    return module_workplace.run_folder


def test_a_killed_run_that_is_submitted_again_ends_as_an_undisturbed_one(run, module_workplace, undisturbed):
    assert module_workplace.files(*SAME) == undisturbed.files(*SAME)


def test_prometheus_finds_the_stages_of_a_run_among_rays_metrics(run, head):
    """Where cluster/prometheus.yaml looks."""
    assert {name for name, _ in head.stages} == {run.name}
    assert 0 < head.stages[run.name, "rounds/2"] < 200


def test_a_job_s_lines_are_objects_where_they_are_asked_for(run, head):
    assert {line["run"] for line in head.lines} == {run.name}
    begun, ended = ([line["stage"] for line in head.lines if line.get("event") == event] for event in ("begin", "end"))
    assert {"rounds/2", "labels", "students"} <= set(begun)
    assert sorted(begun) == sorted(ended)
    assert "rounds/1" not in begun


@pytest.mark.long
def test_a_job_that_is_submitted_once_more_does_nothing(run, head, study):
    assert "nothing to do" in head.done("python", "jobs/run.py", "--config", study)


@pytest.mark.long
def test_a_job_refuses_to_write_where_it_will_be_deleted(head, study):
    relative = study.parent / "relative.yaml"
    relative.write_text(yaml.safe_dump({**yaml.safe_load(study.read_text()), "storage": "runs"}))
    code, output = head.submit("python", "jobs/run.py", "--config", relative)
    assert code != 0
    assert "storage runs is relative" in output


@pytest.mark.long
def test_the_ensemble_labels_and_is_judged(run, head, own_jsonl):
    labels = run.parent / "more-labels"
    command = (
        "python", "jobs/label.py", "--ensemble", run / "ensemble", "--input", own_jsonl,
        "--prompt-column", "question", "--output", labels, "--cpus-per-actor", "0.5",
    )  # fmt: skip
    head.done(*command)
    assert (labels / "summary.json").exists()
    assert "nothing to do" in head.done(*command)
    figures = run.parent / "figures.json"
    head.done(
        "python", "jobs/evaluate.py", "--model", run / "ensemble", "--input", own_jsonl, "--prompt-column", "question",
        "--answer-column", "reply", "--json", figures,
    )  # fmt: skip
    assert 0 < json.loads(figures.read_text())["metrics"]["exact_match"] <= 1


@pytest.mark.long
def test_a_killed_search_that_is_submitted_again_goes_on(run, head, own_jsonl, module_workplace):
    space = {"boosting.rounds": {"integer": [1, 2]}, "expert.learning_rate": {"log_uniform": [0.003, 0.01]}}
    search = {"trials": 2, "searcher": "random", "scheduler": "none", "space": space}
    command = ("python", "jobs/tune.py", "--config", module_workplace.study(own_jsonl, name="searched", search=search))
    module_workplace.faults.plan("boosting/scored@2=hang")
    first, folder = head.start(*command), run.parent / "searched/search"
    head.wait_until_reached(module_workplace.faults, "boosting/scored", 2, first)
    head.kill("jobs/tune.py")
    output, _ = first.communicate(timeout=60)
    assert first.returncode != 0, output
    made = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/.complete.json")}
    assert not (folder / "best.yaml").exists()
    head.done(*command)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished stage was made again"
    assert yaml.safe_load((folder / "best.yaml").read_text())["boosting"]["rounds"] in (1, 2)
    assert "nothing to do" in head.done(*command)


@pytest.mark.long
def test_an_endpoint_stays_when_its_job_has_ended_and_is_updated_by_another(run, head, free_port):
    port = free_port()
    command = ("python", "jobs/serve.py", "--ensemble", run / "ensemble", "--port", port)
    url = f"http://127.0.0.1:{port}/v1"
    head.done(*command)
    assert head.processes("ServeReplica:ensemw2s:ensemble")
    assert [card["id"] for card in requests.get(f"{url}/models", timeout=30).json()["data"]] == ["ensemble"]
    head.done(*command, "--model", f"student={run / 'students/student_ensemw2s'}")
    assert [card["id"] for card in requests.get(f"{url}/models", timeout=30).json()["data"]] == ["ensemble", "student"]
    body = {"prompt": "up 3 1 2 =", "max_tokens": 8, "model": "student"}
    assert requests.post(f"{url}/completions", json=body, timeout=60).json()["usage"]["completion_tokens"] > 0
    head.command("serve", "shutdown", "-y")
    until = time.monotonic() + 60
    while head.processes("ServeReplica"):
        assert time.monotonic() < until, "a replica stayed"
        time.sleep(0.2)


def application(head) -> dict:
    return yaml.safe_load(head.command("serve", "status"))["applications"]["ensemw2s"]


@pytest.mark.long
def test_serve_deploy_takes_the_file_that_lies_here_and_its_changes(run, head, free_port):
    tree = yaml.safe_load((ROOT / "cluster/serve.yaml").read_text())
    port = tree["http_options"]["port"] = free_port()
    [model] = tree["applications"][0]["args"]["models"]
    model.update(path=str(run / "ensemble"), cpus=1, max_replicas=1)
    file, url = run.parent / "serve.yaml", f"http://127.0.0.1:{port}"
    body = {"prompt": "up 3 1 2 =", "max_tokens": 8}

    def deploy() -> tuple[int, str]:
        """Number of its experts, and an answer, as soon as it is up."""
        file.write_text(yaml.safe_dump(tree))
        head.command("serve", "deploy", file)
        until = time.monotonic() + 90
        while (status := application(head)["status"]) != "RUNNING":
            assert time.monotonic() < until, status
            time.sleep(0.5)
        [card] = requests.get(f"{url}/v1/models", timeout=30).json()["data"]
        answer = requests.post(f"{url}/v1/completions", json=body, timeout=60)
        assert answer.ok, answer.text
        return len(card["experts"]), answer.json()["choices"][0]["text"]

    experts, text = deploy()
    assert experts == 2
    assert text
    model.update(path=str(run / "students/student_ensemw2s"), version="2")
    assert deploy()[0] == 1

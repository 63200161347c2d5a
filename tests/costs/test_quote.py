"""`ensemw2s plan --cluster` from the command line, and the page whose figures it prints."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ensemw2s.cli.main import app
from ensemw2s.config import dump_config

ROOT = Path(__file__).parent.parent.parent


def call(*arguments):
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "RAY_ADDRESS": None, "TERM": "dumb"}
    return CliRunner().invoke(app, ["plan", *map(str, arguments)], env=environment)


@pytest.fixture
def study(make_config, make_cluster, tmp_path):
    def write(**changes):
        make_cluster(big=("x.big", 1))
        (tmp_path / "study.yaml").write_text(dump_config(make_config(**changes)))
        return tmp_path / "study.yaml", "--cluster", tmp_path / "cluster.yaml"

    return write


def page_tool():
    spec = importlib.util.spec_from_file_location("refresh_costs", ROOT / "docs" / "refresh_costs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_its_commands_print():
    tool = page_tool()
    page = tool.PAGE.read_text(encoding="utf-8")
    found = tool.outputs(page)
    assert len(found) == 2
    for command, (shown, now) in found.items():
        assert shown == now, f"`python docs/refresh_costs.py` writes what {command} prints"
    typed = page.replace(" \\\n       ", "")
    assert all(f"    {command}" in typed for command in list(found)[:1]), "the command above the figures is theirs"


def test_memory_stages_and_money_are_printed_and_nothing_is_changed(study, tmp_path):
    arguments = study()
    before = sorted(tmp_path.rglob("*"))
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "rounds/2 to do" in text
    assert "cluster.yaml, at its largest: 1 node, 64 CPUs, 8 GPUs" in text
    for words in ("ZeRO 0 ZeRO 1", "experts", "students", "actors (labelling)", "GPU-hours USD", "Prices: a test"):
        assert words in text
    assert "In all about" in text
    hint = "cluster.autoscales_to: [{cpus: 64, gpus: 8, nodes: 1}]"
    assert hint in text
    same = call(*study(cluster={"autoscales_to": [{"cpus": 64, "gpus": 8, "nodes": 1}]}))
    assert "In all" in same.stdout
    assert hint not in same.stdout
    assert "10 + 21 tokens in the mean, of the first 4 rows, at 4 characters a token" in text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_first_try_with_the_files_that_come_along_leads_to_a_plan(name, tmp_path):
    files = (ROOT / "ensemw2s" / "recipes" / "quickstart.yaml", "--cluster", ROOT / "cluster" / f"{name}.yaml")
    arguments = (*files, "--set", f"storage={tmp_path}")
    refused = call(*arguments)
    assert refused.exit_code == 2
    advice = re.findall(r"--set (\S+=1)\b", refused.stderr)
    assert advice == ["training.gpus_per_worker=1", "labeling.gpus_per_actor=1"], refused.stderr
    planned = call(*arguments, *(word for setting in advice for word in ("--set", setting)))
    assert planned.exit_code == 0, planned.stderr
    assert "In all about" in " ".join(planned.stdout.split())


def test_the_example_of_the_help_runs_in_a_clone_and_tokenizers_are_told_of(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    text = " ".join(call("--help").stdout.replace("\\", " ").split())
    assert "in tokens of the first weak base, or from characters if its tokenizer is not here" in text
    example = re.search(r"ensemw2s plan (\S+ --cluster \S+(?: --set \S+)*)", text)[1]
    result = call(*example.split(), "--set", f"storage={tmp_path}")
    assert result.exit_code == 0, result.stderr


def test_an_estimate_is_printed_for_programs_too(study):
    found = json.loads(call(*study(), "--json").stdout)
    assert (found["plan"]["nodes"], found["plan"]["gpus"]) == (1, 8)
    assert {"baselines", "students"} <= {row["name"] for row in found["stages"]}
    assert found["money"] == pytest.approx(sum(bill["money"] for bill in found["bills"]))
    assert found["seconds"] > 0


def test_work_is_planned_on_the_nodes_that_the_config_names(study):
    kinds = ("training", "decoding")
    settings = [f"{s}.node_resource={kind}" for s, kind in zip(("training", "labeling"), kinds, strict=True)]
    options = [word for setting in settings for word in ("--set", setting)]
    result = call(study()[0], "--cluster", ROOT / "cluster" / "aws.yaml", *options)
    assert result.exit_code == 0, result.stderr
    where = dict(re.findall(r"^(rounds|students|scoring|labels) .* × (\S+)", result.stdout, re.MULTILINE))
    assert where == dict.fromkeys(("rounds", "students"), "g6e.12xlarge") | dict.fromkeys(
        ("scoring", "labels"), "g6e.2xlarge"
    )
    kinds = "{cpus: 48, gpus: 4, nodes: 4, resources: [training]}, {cpus: 8, gpus: 1, nodes: 8, resources: [decoding]}"
    assert f"cluster.autoscales_to: [{kinds}]" in " ".join(result.stdout.split())
    nowhere = call(study()[0], "--cluster", ROOT / "cluster" / "aws.yaml", "--set", "training.node_resource=trainers")
    assert nowhere.exit_code == 2
    assert "no node type of ensemw2s has it in its resources, which are decoding, training" in nowhere.stderr


def test_what_does_not_fit_ends_with_exit_code_2(study):
    result = call(*study(labeling__batch_size=4096))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: actors (")
    assert "the nearest that fits: --set 'labeling.batch_size=" in result.stderr


def test_a_table_of_ones_own_is_taken(study, tmp_path):
    arguments = study()
    table = yaml.safe_load((tmp_path / "prices.yaml").read_text())
    table["instances"]["x.big"]["on_demand"], table["currency"] = 2000, "EUR"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(table))
    dear = call(*arguments, "--prices", tmp_path / "own.yaml")
    assert "EUR" in dear.stdout
    assert dear.stdout != call(*arguments).stdout


def test_options_of_costs_need_a_cluster(study):
    result = call(study()[0], "--prompt-tokens", 3)
    assert result.exit_code == 2
    assert "--prompt-tokens: give --cluster FILE, too" in result.stderr


def test_a_base_that_is_not_here_is_named(study):
    result = call(*study(models__strong__base="/nowhere/model"))
    assert result.exit_code == 2
    assert "/nowhere/model" in result.stderr

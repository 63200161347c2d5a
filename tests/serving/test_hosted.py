"""What a replica holds: models of every kind that can be named, and drafts that change no answer."""

import asyncio
import copy
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from ensemw2s.models.loading import save_trained
from ensemw2s.serving.exchange import Job, Refused
from ensemw2s.serving.hosted import HostedModel
from ensemw2s.serving.settings import HostedSettings, Limits

JOB = Job("sort these 3 1 2", max_tokens=40)


def answer(held: HostedModel, job: Job = JOB) -> str:
    pieces = []
    assert asyncio.run(held.answer(job, pieces.append)) is None
    return "".join(piece.text for piece in pieces)


@pytest.fixture
def hold():
    held = []

    def make(path, **options) -> HostedModel:
        held.append(HostedModel(HostedSettings(name="one", path=str(path), slots=2, **options), Limits()))
        return held[-1]

    yield make
    for one in held:
        one.close()
        assert one.loop.join(10)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["ngram", "member"])
def test_drafts_change_no_answer(hold, folders, draft):
    plain, quick = hold(folders / "ensemble"), hold(folders / "ensemble", speculation=draft)
    long = Job("1 2 3 1 2 3 1 2 3", max_tokens=300)
    assert answer(quick, long) == answer(plain, long)
    assert quick.loop.engine.counters.proposed > 0
    assert plain.loop.engine.counters.proposed == 0


def test_the_end_tokens_of_the_generation_config_end_an_answer(hold, folders, tmp_path):
    shutil.copytree(folders / "student", tmp_path / "student")
    file = tmp_path / "student" / "generation_config.json"
    pieces = []
    held = hold(tmp_path / "student")
    asyncio.run(held.answer(Job("sort these 3 1 2", max_tokens=3, tokens=True), pieces.append))
    second = [token.id for piece in pieces for token in piece.tokens][1]
    file.write_text(json.dumps({"eos_token_id": [second]}))
    pieces.clear()
    asyncio.run(hold(tmp_path / "student").answer(JOB, pieces.append))
    assert (sum(piece.count for piece in pieces), pieces[-1].finish) == (2, "stop")


def test_a_prompt_that_is_far_too_long_is_refused_by_its_beginning(hold, folders, monkeypatch):
    held, read = hold(folders / "student"), []
    tokenizer = type(held.loaded.tokenizer)
    encode = tokenizer.__call__
    monkeypatch.setattr(
        tokenizer, "__call__", lambda self, text, **kw: read.append(len(text)) or encode(self, text, **kw)
    )
    most = min(held.limits.prompt_tokens, held.loaded.model.context)
    for prompt in ("3 1 2 " * 100_000, [{"role": "user", "content": "3 1 2 " * 100_000}]):
        refused = asyncio.run(held.answer(Job(prompt, max_tokens=4), lambda piece: None))
        assert refused.code == "context_length_exceeded"
        assert f"more than {2 * most} tokens; this endpoint allows {most}" in refused.message
    assert read == [12 * most] * 2


TEMPLATE = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('the user begins') }}{% endif %}"
    "{% for one in messages %}{{ one.role[0] }} {{ one.content }} {% endfor %}"
)


def test_a_chat_is_rendered_by_the_template_of_the_tokenizer(hold, folders, make_model, tokenizer, tmp_path):
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    save_trained(make_model(7), own, tmp_path / "chat")
    held = hold(tmp_path / "chat")
    talk = [
        {"role": "user", "content": "3 1 2"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "9"},
    ]
    assert held.card.chat
    assert tokenizer.decode(held.prompt(Job(talk))) == tokenizer.decode(
        tokenizer("u 3 1 2 a 1 u 9 ", add_special_tokens=False)["input_ids"]
    )
    refused = asyncio.run(held.answer(Job(talk[1:]), print))
    assert "the user begins" in refused.message
    assert not hold(tmp_path / "chat", chat_template=False).card.chat


def test_a_job_that_cannot_be_answered_is_refused_with_the_reason(hold, folders):
    refused = asyncio.run(hold(folders / "student").answer(Job([1, 10**6]), print))
    assert isinstance(refused, Refused)
    assert "outside the vocabulary" in refused.message


HUB = """
import asyncio, json, sys
from ensemw2s.serving.hosted import HostedModel
from ensemw2s.serving.exchange import Job
from ensemw2s.serving.settings import HostedSettings, Limits
answers = []
for name in sys.argv[2:]:
    held, pieces = HostedModel(HostedSettings(name="one", path=name), Limits()), []
    asyncio.run(held.answer(Job(sys.argv[1], max_tokens=40), pieces.append))
    answers.append("".join(piece.text for piece in pieces))
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_hub_ids_are_answered_from_the_local_cache_of_the_hub(hold, folders, tmp_path):
    repository, commit = tmp_path / "hub" / "models--acme--student", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folders / "student", repository / "snapshots" / commit)
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB, JOB.prompt, "acme/student", "acme/student@main"],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [answer(hold(folders / "student"))] * 2


def test_long_prompts_are_tokenized_aside_while_short_ones_are_answered(hold, folders, monkeypatch):
    held = hold(folders / "student")
    render, threads = held._render, {}

    def watched(prompt):
        threads[len(prompt)] = threading.current_thread().name
        return render(prompt)

    monkeypatch.setattr(held, "_render", watched)
    assert "allows 8192" in asyncio.run(held.answer(Job("9 " * 10_000), print)).message
    assert asyncio.run(held.answer(JOB, lambda _: None)) is None
    assert threads == {20_000: "tokenizer_0", len(JOB.prompt): threading.current_thread().name}


def test_an_instruction_of_the_developer_is_one_of_the_system_where_the_template_knows_no_developer(
    hold, folders, make_model, tokenizer, tmp_path
):
    own = copy.deepcopy(tokenizer)
    only_system = "{% if one.role == 'system' %}1 {{ one.content }} {% endif %}"
    own.chat_template = f"{{% for one in messages %}}{only_system}{{% endfor %}}"
    save_trained(make_model(7), own, tmp_path / "chat")
    held = hold(tmp_path / "chat")
    system, developer = (held.prompt(Job([{"role": role, "content": "sort"}])) for role in ("system", "developer"))
    assert system == developer
    assert len(system) > 2


def test_what_does_not_fit_is_said_with_its_code(hold, folders):
    refused = asyncio.run(hold(folders / "student").answer(Job([5] * 2040, max_tokens=9), print))
    assert (refused.code, refused.param) == ("context_length_exceeded", "prompt")
    assert "context of 2048" in refused.message

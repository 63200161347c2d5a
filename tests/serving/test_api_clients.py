"""Programs that people use with an OpenAI endpoint, as they come: curl, and clients with pinned versions.

Each client is installed into an environment of its own, which pytest's cache keeps, and runs a script of `clients/`.
"""

import json
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
from ensemw2s.ensemble.score import score
from ensemw2s.models import tiny
from ensemw2s.models.loading import save_trained
from ensemw2s.serving.api import make_api
from ensemw2s.serving.settings import Limits

from .conftest import Local

SCRIPTS = Path(__file__).parent / "clients"
PROMPT = "sort these 3 1 2"
LIMITS = Limits(max_tokens=64)

PYTHON = {
    "openai": ["openai==3.57.0"],
    "langchain": ["langchain-openai==1.7.4", "langchain-core==1.8.3"],
    "litellm": ["litellm==1.110.2"],
    "llm": ["llm==0.36"],
    "instructor": ["instructor==1.17.0"],
    "pydantic_ai": ["pydantic-ai-slim[openai]==2.68.0"],
    "lm_eval": ["lm-eval[api]==0.4.13", "transformers==5.23.0"],
}
NPM = ["openai@6.49.0"]


@pytest.fixture(scope="module")
def held(tmp_path_factory, make_model):
    """Two models whose tokenizer has all of JSON and a chat template."""
    root = tmp_path_factory.mktemp("clients")
    text = "".join(map(chr, range(32, 127))) + "\n"
    tokenizer = tiny.train_tokenizer(["sort these numbers please 0 1 2 3"] * 9, 140, also=text)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    sources = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.3,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        model.lm_head.weight.data[:4] = 0.0  # control tokens are seldom the likeliest
        save_trained(model, tokenizer, root / f"expert-{seed}")
        sources.append(MemberSource(f"round-{seed + 1}", root / f"expert-{seed}", 1.0, 0.5, seed + 1))
    save_ensemble(root / "ensemble", members=sources, rule="probability", tokenizer=tokenizer)
    shutil.copytree(root / "expert-0", root / "student")
    local = Local(root, LIMITS)
    local.tokenizer = root / "ensemble" / "tokenizer"
    yield local
    for one in local.held.values():
        one.close()
        assert one.loop.join(10)


@pytest.fixture(scope="module")
def address(held, served):
    with served(make_api(held, LIMITS)) as url:
        yield f"{url}/v1"


def curl(address: str, path: str, body: dict[str, Any]) -> str:
    command = ["curl", "-sS", "--fail-with-body", "-N", f"{address}/{path}", "-H", "Content-Type: application/json"]
    return subprocess.run(
        [*command, "-d", json.dumps(body)], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def completion(address: str, prompt: str = PROMPT, most: int = 12) -> str:
    body = {"model": "ensemble", "prompt": prompt, "max_tokens": most, "temperature": 0}
    return json.loads(curl(address, "completions", body))["choices"][0]["text"]


def chat(address: str, *texts: str, system: str | None = None) -> list[str]:
    """The answers to the user's texts, one after another."""
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    for text in texts:
        messages.append({"role": "user", "content": text})
        body = {"model": "ensemble", "messages": messages, "max_tokens": 12, "temperature": 0}
        messages.append(json.loads(curl(address, "chat/completions", body))["choices"][0]["message"])
    return [message["content"] for message in messages if message["role"] == "assistant"]


def answers(program: list[str], script: str, *arguments: str, folder: Path | None = None) -> dict[str, Any]:
    """What a client's script prints."""
    command = [*program, str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here (Debian: apt-get install curl)")


@needs_curl
def test_curl_gets_the_same_answer_whole_and_as_a_stream(address):
    whole = completion(address)
    body = {"model": "ensemble", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "stream": True}
    lines = [line for line in curl(address, "completions", body).split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    assert "".join(json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines) == whole
    assert len(whole) > 5


@pytest.fixture
def client(request, pytestconfig):
    """Runs the script of a Python client, in an environment that has its pinned version and nothing of ours."""
    folder = pytestconfig.cache.mkdir("clients") / "-".join(PYTHON[request.param]).translate(
        str.maketrans("[]=", "___")
    )
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", *PYTHON[request.param]], check=True, timeout=900)
        (folder / "done").touch()
    return lambda *arguments: answers([str(python), "-I"], f"{request.param}_client.py", *arguments)


def uses(name: str):
    return pytest.mark.parametrize("client", [name], indirect=True)


@needs_curl
@pytest.mark.long
@uses("openai")
def test_the_openai_client_for_python(client, address):
    assert client(address, PROMPT) == {
        "models": ["ensemble", "student"],
        "text": completion(address),
        "stream": completion(address),
        "turns": chat(address, PROMPT, "again", system="sort"),
    }


@needs_curl
@pytest.mark.long
@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm here (Debian: apt-get install npm)")
def test_the_openai_client_of_npm(address, pytestconfig):
    folder = pytestconfig.cache.mkdir("clients") / "npm-{}".format("-".join(NPM))
    folder.mkdir(exist_ok=True)
    if not (folder / "node_modules").exists():
        install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *NPM]
        subprocess.run(install, check=True, timeout=900, capture_output=True)
    shutil.copy(SCRIPTS / "openai_client.mjs", folder)  # modules are looked for beside the script
    assert answers(["node"], str(folder / "openai_client.mjs"), address, PROMPT) == {
        "models": ["ensemble", "student"],
        "text": completion(address),
        "stream": completion(address),
        "turns": chat(address, PROMPT, "again", system="sort"),
    }


@needs_curl
@pytest.mark.long
@uses("langchain")
def test_langchain(client, address):
    found, turns = client(address, PROMPT), chat(address, PROMPT, "again", system="sort")
    assert found.pop("digit") in (1, 2, 3)
    assert found == {"count": 20, "text": completion(address), "turns": turns, "stream": turns[0]}


@needs_curl
@pytest.mark.long
@uses("litellm")
def test_litellm(client, address):
    turns = chat(address, PROMPT)
    assert client(address, PROMPT) == {"text": completion(address), "turns": turns, "stream": turns[0]}


@needs_curl
@pytest.mark.long
@uses("llm")
def test_the_command_llm(client, address):
    assert client(address, PROMPT) == {"turns": chat(address, PROMPT, "again")}


@pytest.mark.long
@uses("instructor")
def test_instructor(client, address):
    found = client(address, PROMPT)
    assert found["digit"] in (1, 2, 3)
    assert found["sorted"] in (True, False)


@needs_curl
@pytest.mark.long
@uses("pydantic_ai")
def test_pydantic_ai(client, address):
    found = client(address, PROMPT)
    assert found["turns"] == chat(address, PROMPT)
    assert found["digit"] in (1, 2, 3)


CONTEXTS = [f"sort these {a} {b} {c}" for a, b, c in ((3, 1, 2), (2, 2, 1), (0, 3, 1), (1, 0, 0))]
OPTIONS = ["1 2 3", "3 1", "0", "please"]


@needs_curl
@pytest.mark.long
@uses("lm_eval")
@pytest.mark.parametrize("ids", [True, False], ids=["token ids", "texts"])
def test_lm_eval_finds_the_accuracies_of_our_own_evaluation(client, address, held, tmp_path, ids):
    """Right options are the likeliest ones of every other row; right answers are those of every other row."""
    loaded = held.held["ensemble"].loaded
    encode = AutoTokenizer.from_pretrained(held.tokenizer).encode
    rows = []
    for number, context in enumerate(CONTEXTS):
        whole, start = [encode(f"{context} {option}") for option in OPTIONS], len(encode(context))
        sums = [
            float(one.logprobs.sum())
            for one in score(
                loaded.model, [w[:start] for w in whole], [w[start:] for w in whole], pad_id=0, batch_size=4
            )
        ]
        likeliest = sums.index(max(sums))
        answer = completion(address, context, 8)
        rows.append(
            {
                "prompt": context, "options": OPTIONS, "gold": (likeliest + number % 2) % len(OPTIONS),
                "answer": "no" if number % 4 == 3 else answer,
            }
        )  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": str(file)}, "test_split": "train",
        "doc_to_text": "{{prompt}}", "target_delimiter": " ",
    }  # fmt: skip
    tasks = {
        "options": {
            "output_type": "multiple_choice", "doc_to_choice": "options", "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}],
        },
        "answers": {
            "output_type": "generate_until", "doc_to_target": "answer", "metric_list": [{"metric": "exact_match"}],
            "generation_kwargs": {"until": ["<eos>"], "max_gen_toks": 8, "do_sample": False},
        },
    }  # fmt: skip
    for name, task in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **task}))
    found = client(address, str(tmp_path), str(held.tokenizer), str(ids))
    assert found == {"options": 0.5, "answers": 0.75}

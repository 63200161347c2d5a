"""lm-evaluation-harness on the endpoint, as `lm_eval --model local-completions` calls it: its scores are ours."""

import pytest

from ensemw2s.ensemble.score import score

pytestmark = pytest.mark.slow

CONTEXTS = ["sort these 3 1 2", "please 9", "sort 4 4"]
OPTIONS = [" 1 2 3", " 3 1", " 9"]


@pytest.fixture(scope="module")
def adding(folders, tmp_path_factory):
    """The ensemble's tokenizer, which adds its BOS token here: a prompt of this endpoint starts with one."""
    from transformers import AutoTokenizer

    target = str(tmp_path_factory.mktemp("adding"))
    AutoTokenizer.from_pretrained(folders / "ensemble" / "tokenizer", add_bos_token=True).save_pretrained(target)
    return target


@pytest.fixture(scope="module", params=[True, False], ids=["token ids", "texts"])
def harness(request, url, adding):
    pytest.importorskip("lm_eval")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{url}/v1/completions", model="ensemble", tokenizer=adding, batch_size=4,
        tokenized_requests=request.param, add_bos_token=True, max_length=60, max_gen_toks=8,
    )  # fmt: skip


def instance(kind: str, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_options_have_the_log_likelihood_of_our_own_evaluation(harness, backend):
    pairs = [(context, option) for context in CONTEXTS for option in OPTIONS]
    found = harness.loglikelihood([instance("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    loaded = backend.held["ensemble"].loaded
    encode = loaded.tokenizer.encode  # it adds its BOS token
    whole = [encode(context + option) for context, option in pairs]
    starts = [len(encode(context)) for context, _ in pairs]
    ours = score(
        loaded.model, [ids[:n] for ids, n in zip(whole, starts, strict=True)],
        [ids[n:] for ids, n in zip(whole, starts, strict=True)], pad_id=0, batch_size=4,
    )  # fmt: skip
    for (value, greedy), expected in zip(found, ours, strict=True):
        assert value == pytest.approx(float(expected.logprobs.sum()), abs=1e-3)
        assert greedy == bool(expected.correct.all())


def test_generated_answers_are_those_of_the_engine(harness, client_text):
    found = harness.generate_until(
        [instance("generate_until", context, {"until": ["\n"], "max_gen_toks": 8}) for context in CONTEXTS],
        disable_tqdm=True,
    )
    assert found == [client_text(context) for context in CONTEXTS]


@pytest.fixture
def client_text(url):
    import requests

    def text(prompt: str) -> str:
        body = {"model": "ensemble", "prompt": prompt, "max_tokens": 8, "temperature": 0, "stop": ["\n"]}
        return requests.post(f"{url}/v1/completions", json=body, timeout=20).json()["choices"][0]["text"]

    return text

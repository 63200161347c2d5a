import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ensemw2s.config import DataConfig, FilesSource, Lora, SplitConfig
from ensemw2s.data.tokens import tokenize_prompts
from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
from ensemw2s.ensemble.decoding import decode
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.voter import Loaded, Voter, load_voters, weights_type
from ensemw2s.errors import ModelError
from ensemw2s.models import loading
from ensemw2s.models.adapters import BaseReference, attach_lora
from ensemw2s.models.loading import tokenizer_hash
from ensemw2s.training.setup import use_bf16


def voter(name: str, folders: list, weights: list[float], **fields) -> Voter:
    return Voter(name=name, models=[str(folder) for folder in folders], weights=weights, **fields)


def answers(loaded, prompts) -> list[list[int]]:
    size = {"eos_ids": loaded.eos_id, "batch_size": 4}
    return [g.token_ids for g in decode(loaded.model, prompts, max_new_tokens=6, **size)]


@pytest.mark.parametrize("rule", ["probability", "log_probability", "vote"])
def test_models_answer_together_by_weight_and_rule(full_folders, experts, prompts, naive_greedy, rule):
    weights = [0.5, 0.2, 0.3]
    [loaded] = load_voters([voter("all", full_folders, weights, rule=rule)], device="cpu")
    expected = [naive_greedy(experts, weights, p, 6, [loaded.eos_id], rule) for p in prompts[:4]]
    assert answers(loaded, prompts[:4]) == expected


def test_a_voters_temperatures_are_those_of_its_members(full_folders, experts, prompts, naive_greedy):
    weights, heat = [0.5, 0.2, 0.3], [0.4, 2.5, 1.0]
    [loaded] = load_voters([voter("all", full_folders, weights, temperatures=heat)], device="cpu")
    expected = [naive_greedy(experts, weights, p, 6, [loaded.eos_id], "probability", heat) for p in prompts[:4]]
    assert answers(loaded, prompts[:4]) == expected


def test_a_model_alone_answers_as_itself(full_folders, experts, prompts, naive_greedy):
    [loaded] = load_voters([voter("one", full_folders[1:2], [1.0])], device="cpu")
    assert answers(loaded, prompts[:3]) == [naive_greedy([experts[1]], [1.0], p, 6, [2]) for p in prompts[:3]]


def test_a_model_that_several_share_is_in_memory_once(full_folders):
    first, second, both = load_voters(
        [
            voter("first", full_folders[:1], [1.0]),
            voter("second", full_folders[1:2], [1.0]),
            voter("both", full_folders[1::-1], [0.25, 0.75]),
        ],
        device="cpu",
    )
    assert both.model.networks[0] is second.model.networks[0]
    assert both.model.networks[1] is first.model.networks[0]
    assert list(both.model.weights) == [0.25, 0.75]


def test_adapters_of_one_base_share_it_between_voters(adapter_folders, prompts):
    single, both = load_voters(
        [voter("single", adapter_folders[:1], [1.0]), voter("both", adapter_folders[:2], [0.5, 0.5])], device="cpu"
    )
    assert single.model.networks[0] is both.model.networks[0]
    alone = answers(single, prompts)
    answers(both, prompts)
    assert answers(single, prompts) == alone, "another voter's adapters must not stay switched on"


def test_a_saved_ensemble_answers_like_its_members(full_folders, tokenizer, prompts, tmp_path):
    members = [
        MemberSource(name=f"m{i}", directory=folder, alpha=w, weight=w, round=i + 1, weighted_error=0.1)
        for i, (folder, w) in enumerate(zip(full_folders, (2.0, 1.0, 1.0), strict=True))
    ]
    save_ensemble(tmp_path / "ensemble", members=members, rule="log_probability", tokenizer=tokenizer)
    [saved] = load_voters([Voter(name="ensemw2s", ensemble=str(tmp_path / "ensemble"))], device="cpu")
    [loose] = load_voters([voter("loose", full_folders, [0.5, 0.25, 0.25], rule="log_probability")], device="cpu")
    assert answers(saved, prompts) == answers(loose, prompts)
    assert tokenizer_hash(saved.tokenizer) == tokenizer_hash(loose.tokenizer)
    assert (saved.pad_id, saved.eos_id) == (0, 2)


def test_weights_have_the_type_that_was_asked_for(full_folders):
    [loaded] = load_voters([voter("one", full_folders[:1], [1.0])], device="cpu", precision="bf16")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="absent"):
        load_voters([voter("gone", [tmp_path / "absent"], [1.0])], device="cpu")


def test_a_description_survives_json(full_folders):
    described = voter("all", full_folders, [0.5, 1 / 3, 1 / 6], rule="vote")
    assert Voter.model_validate_json(described.model_dump_json()) == described
    with pytest.raises(ValidationError, match="rule"):
        voter("bad", full_folders, [1.0], rule="mean")


def kinds_of_tokenizer() -> dict[str, PreTrainedTokenizerFast]:
    """One that adds a BOS, one that has one and adds none, one without a BOS, and one of SentencePiece's parts."""
    text = ["sort these numbers in ascending order please 0 1 2 3 4 5 6 7 8 9"] * 9
    made = {}
    for name in ("adds", "has", "none", "sentencepiece"):
        raw = Tokenizer(models.BPE(unk_token="<unk>"))
        if name == "sentencepiece":
            raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
            raw.decoder = decoders.Metaspace(prepend_scheme="first")
        else:
            raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            raw.decoder = decoders.ByteLevel()
        special = ["<pad>", "<s>", "</s>", "<unk>"]  # no tokenizer of the tiny family
        raw.train_from_iterator(text, trainers.BpeTrainer(vocab_size=64, special_tokens=special, show_progress=False))
        if name in ("adds", "sentencepiece"):
            raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        names |= {} if name == "none" else {"bos_token": "<s>"}
        made[name] = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    made["chat"] = copy.deepcopy(made["adds"])
    made["chat"].chat_template = (
        "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>please {% endif %}"
    )
    return made


KINDS = ["adds", "has", "none", "sentencepiece", "chat"]


def asked(kind: str) -> DataConfig:
    """How prompts are made for a kind of tokenizer: by its template if it is one of chats."""
    return DataConfig(
        source=FilesSource(paths=["-"]),
        split=SplitConfig(mode="random"),
        chat_template=kind == "chat",
        answer_prefix="",
    )


def saved(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, *, place: str) -> tuple[Path, Path]:
    """Puts a model in a place as runs do; gives the folders that others load it and its tokenizer from."""
    model.generation_config.eos_token_id = [2, 17]
    loading.save_trained(model, tokenizer, folder / "model")
    if place == "member":
        member = MemberSource("one", folder / "model", alpha=1.0, weight=1.0, round=1)
        save_ensemble(folder / "ensemble", members=[member], rule="probability", tokenizer=tokenizer)
        return folder / "ensemble/members/one", folder / "ensemble/tokenizer"
    if place == "adapters":
        base = loading.load_causal_lm(folder / "model")
        student = attach_lora(base, Lora(rank=2), seed=0)
        for name, weights in student.named_parameters():
            if "lora_B" in name:  # zeros at the start: an adapter that changes nothing
                torch.nn.init.normal_(weights, std=0.5)
        where: BaseReference = {"path": str(folder / "model"), "revision": None}
        loading.save_trained(student, tokenizer, folder / "student", base=where)
        return folder / "student", folder / "student"
    return folder / "model", folder / "model"


def read_plainly(tokenizer: Any, text: str, kind: str) -> list[int]:
    """Tokens of a prompt as a user of transformers makes them."""
    if kind != "chat":
        return tokenizer(text)["input_ids"]
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]


def ours(folder: Path, kind: str) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers of a model, as runs make them."""
    [loaded] = load_voters([Voter(name="one", models=[str(folder)], weights=[1.0])], device="cpu")
    data = asked(kind)
    prompts = tokenize_prompts(TEXTS, loaded.tokenizer, data)
    decoded = decode(loaded.model, prompts, max_new_tokens=20, eos_ids=loaded.ends(data), batch_size=2)
    return prompts, [g.token_ids for g in decoded]


TEXTS = ["sort these numbers 3 1 2", "please order 9 8"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["model", "member", "adapters"])
def test_plain_transformers_gives_our_answers_token_for_token(kind, place, make_model, tmp_path):
    tokenizer = kinds_of_tokenizer()[kind]
    folder, of_tokenizer = saved(make_model(3, vocabulary=64), tokenizer, tmp_path, place=place)
    prompts, answers = ours(tmp_path / "model" if place == "member" else folder, kind)
    if place == "adapters":
        assert answers != ours(tmp_path / "model", kind)[1], "the adapters make a difference"
    plain, read = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(of_tokenizer)
    for text, prompt, answer in zip(TEXTS, prompts, answers, strict=True):
        assert read_plainly(read, text, kind) == prompt
        with torch.no_grad():
            found = plain.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :]
        assert found.tolist() == answer


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["model", "member", "adapters"])
def test_the_harness_reads_our_prompts_and_gives_our_answers(kind, place, make_model, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer = kinds_of_tokenizer()[kind]
    folder, of_tokenizer = saved(make_model(3, vocabulary=64), tokenizer, tmp_path, place=place)
    prompts, answers = ours(tmp_path / "model" if place == "member" else folder, kind)
    read = AutoTokenizer.from_pretrained(of_tokenizer)
    harness = HFLM(AutoModelForCausalLM.from_pretrained(folder), tokenizer=read, device="cpu", max_length=512)
    texts = TEXTS
    if kind == "chat":  # as `--apply_chat_template` does
        texts = [harness.apply_chat_template([{"role": "user", "content": text}]) for text in TEXTS]
    settings = {"until": ["</s>"], "max_gen_toks": 20, "do_sample": False}
    instances = [Instance("generate_until", {}, (text, settings), i) for i, text in enumerate(texts)]
    assert [harness.tok_encode(text) for text in texts] == prompts
    assert harness.generate_until(instances, disable_tqdm=True) == [
        read.decode(answer, skip_special_tokens=True) for answer in answers
    ]


def test_every_token_that_a_members_generation_config_names_ends_an_answer(make_model, tokenizer):
    first, second = make_model(1), make_model(2)
    first.generation_config.eos_token_id = [2, 17]
    second.generation_config.eos_token_id = 9
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}{{ m.content }}<pad>{% endfor %}"
    loaded = Loaded(EnsembleForCausalLM([first, second], [0.5, 0.5]), chat)
    data = DataConfig(source=FilesSource(paths=["-"]), split=SplitConfig(mode="random"))
    assert loaded.ends(data) == (2, 17, 9)
    assert loaded.ends(data.model_copy(update={"chat_template": True})) == (0, 2, 17, 9)


def test_auto_takes_bf16_only_where_the_gpu_has_it_and_not_where_it_is_emulated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert weights_type("auto", "cuda") == torch.float32
    assert not use_bf16("auto", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert weights_type("auto", "cuda") == torch.bfloat16
    assert use_bf16("auto", torch.device("cuda"))
    assert weights_type("auto", "cpu") == torch.float32

import itertools

import pytest
import torch
from peft import PeftModel
from transformers import DynamicCache, T5Config, T5ForConditionalGeneration, TextIteratorStreamer

from ensemw2s.config import Lora
from ensemw2s.ensemble.combine import combine
from ensemw2s.ensemble.decoding import decode
from ensemw2s.ensemble.members import AdapterMember, load_members
from ensemw2s.ensemble.model import EnsembleForCausalLM, as_ensemble
from ensemw2s.ensemble.score import score
from ensemw2s.errors import ModelError
from ensemw2s.models import loading

WEIGHTS = [1.0, 2.0, 1.5]
RULES = ["probability", "log_probability", "vote"]


@pytest.fixture(scope="module")
def ensemble(experts) -> EnsembleForCausalLM:
    return EnsembleForCausalLM(experts, WEIGHTS)


@pytest.fixture(scope="module")
def batch(prompts) -> dict[str, torch.Tensor]:
    """All prompts, padded on the left."""
    width = max(map(len, prompts))
    rows = [[0] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def answers(sequences: torch.Tensor, width: int, eos: int = 2) -> list[list[int]]:
    """Generated tokens up to and with the first end token."""
    rows = [row[width:].tolist() for row in sequences]
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


@pytest.mark.parametrize("rule", RULES)
def test_logits_are_the_combination_of_the_members_log_probabilities(experts, prompts, rule):
    ids = torch.tensor([prompts[2]])
    members = torch.stack([torch.log_softmax(model(ids).logits, -1) for model in experts])
    logits = EnsembleForCausalLM(experts, WEIGHTS, rule)(ids).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, combine(members, WEIGHTS, rule))


def test_temperatures_divide_the_members_logits(experts, prompts):
    ids, heat = torch.tensor([prompts[2]]), [0.5, 1.0, 3.0]
    model = EnsembleForCausalLM(experts, WEIGHTS, temperatures=heat)
    members = torch.stack([torch.log_softmax(m(ids).logits / t, -1) for m, t in zip(experts, heat, strict=True)])
    torch.testing.assert_close(model(ids).logits, combine(members, WEIGHTS))


def test_temperatures_of_1_are_none_at_all(experts, ensemble, prompts):
    ids = torch.tensor([prompts[2]])
    model = EnsembleForCausalLM(experts, WEIGHTS, temperatures=[1.0, 1.0, 1.0])
    assert model.temperatures == ensemble.temperatures == []
    assert torch.equal(model(ids).logits, ensemble(ids).logits)


@pytest.mark.parametrize("heat", [[1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0]])
def test_temperatures_that_do_not_fit_are_refused(experts, heat):
    with pytest.raises(ModelError, match="expected 3 positive numbers, or none"):
        EnsembleForCausalLM(experts, WEIGHTS, temperatures=heat)


def test_left_padding_changes_nothing(ensemble, prompts, batch):
    padded = ensemble(**batch).logits
    for row, prompt in enumerate(prompts):
        alone = ensemble(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(padded[row, -len(prompt) :], alone, atol=1e-4, rtol=1e-4)


def test_right_padding_changes_nothing(ensemble, prompts):
    ids, mask = torch.zeros(1, 9, dtype=torch.int64), torch.zeros(1, 9, dtype=torch.int64)
    ids[0, :5], mask[0, :5] = torch.tensor(prompts[0]), 1
    torch.testing.assert_close(
        ensemble(ids, attention_mask=mask).logits[:, :5], ensemble(ids[:, :5]).logits, atol=1e-4, rtol=1e-4
    )


def test_the_cache_continues_where_it_stopped(ensemble, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    whole = ensemble(ids, attention_mask=mask).logits[:, -2:]
    first = ensemble(ids[:, :-2], attention_mask=mask[:, :-2], use_cache=True)
    assert first.past_key_values.get_seq_length() == ids.shape[1] - 2
    steps = []
    for width in (ids.shape[1] - 1, ids.shape[1]):
        output = ensemble(
            ids[:, width - 1 : width], attention_mask=mask[:, :width], past_key_values=first.past_key_values
        )
        steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)


def test_logits_to_keep_gives_the_last_positions(ensemble, batch):
    torch.testing.assert_close(ensemble(**batch, logits_to_keep=3).logits, ensemble(**batch).logits[:, -3:])


def test_labels_give_the_mean_negative_log_likelihood(ensemble, batch):
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = ensemble(**batch, labels=labels)
    taken = output.logits[:, :-1].gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(output.loss, -taken[labels[:, 1:] != -100].mean())


def test_a_tuple_comes_out_where_one_is_asked_for(ensemble, prompts):
    logits, cache = ensemble(torch.tensor([prompts[0]]), return_dict=False)
    assert logits.shape == (1, 5, 64)
    assert cache.get_seq_length() == 5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("use_cache", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_generate_is_greedy_like_the_naive_reference(experts, prompts, batch, naive_greedy, rule, use_cache):
    model = EnsembleForCausalLM(experts, WEIGHTS, rule)
    output = model.generate(**batch, max_new_tokens=8, do_sample=False, use_cache=use_cache)
    expected = [naive_greedy(experts, WEIGHTS, prompt, 8, [2], rule) for prompt in prompts]
    assert answers(output, batch["input_ids"].shape[1]) == expected


@pytest.mark.slow
def test_generate_with_adapters_is_greedy_like_merged_models(adapter_folders, prompts, batch, naive_greedy):
    model = EnsembleForCausalLM(load_members(adapter_folders), WEIGHTS)
    merged = [loading.load_trained(folder).merge_and_unload() for folder in adapter_folders]
    expected = [naive_greedy(merged, WEIGHTS, prompt, 8, [2]) for prompt in prompts]
    output = model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert answers(output, batch["input_ids"].shape[1]) == expected


def test_full_members_and_adapters_mix(full_folders, adapter_folders, prompts, naive_greedy):
    folders = [adapter_folders[0], full_folders[1], adapter_folders[2]]
    model = EnsembleForCausalLM(load_members(folders), WEIGHTS)
    plain = [loading.load_trained(folder) for folder in folders]
    expected = naive_greedy(plain, WEIGHTS, prompts[3], 8, [2])
    output = model.generate(torch.tensor([prompts[3]]), max_new_tokens=8, do_sample=False)
    assert answers(output, len(prompts[3])) == [expected]


def test_sampling_in_generate_follows_its_seed(ensemble, batch):
    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return ensemble.generate(**batch, max_new_tokens=6, do_sample=True, num_return_sequences=2).tolist()

    assert len(sample(1)) == 2 * len(batch["input_ids"])
    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


@pytest.mark.parametrize("rule", ["probability", "log_probability"])
def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_sequence(make_model, rule):
    size, steps = 6, 3
    model = EnsembleForCausalLM([make_model(seed, vocabulary=size) for seed in (4, 5)], [1.0, 2.0], rule)
    prompt = [3, 5, 4]
    candidates = torch.tensor(list(itertools.product(range(size), repeat=steps)))
    with torch.no_grad():
        ids = torch.cat([torch.tensor([prompt]).expand(len(candidates), -1), candidates], 1)
        taken = model(ids).logits[:, len(prompt) - 1 : -1].gather(-1, candidates.unsqueeze(-1)).sum((1, 2))
    best = candidates[taken.argmax()].tolist()
    greedy = model.generate(torch.tensor([prompt]), max_new_tokens=steps, do_sample=False, eos_token_id=None)
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=steps,
        num_beams=size * size,  # with a beam of all prefixes nothing is pruned
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert output.sequences[0, len(prompt) :].tolist() == best
    assert output.sequences_scores[0].item() * steps == pytest.approx(taken.max().item(), abs=1e-3)
    assert greedy[0, len(prompt) :].tolist() in candidates.tolist()


@pytest.mark.slow
def test_beam_search_of_a_padded_batch_is_that_of_each_prompt_alone(ensemble, prompts, batch):
    width = batch["input_ids"].shape[1]
    together = answers(ensemble.generate(**batch, max_new_tokens=5, num_beams=3, do_sample=False), width)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = ensemble.generate(torch.tensor([prompt]), max_new_tokens=5, num_beams=3, do_sample=False)
        assert answers(alone, len(prompt)) == [answer]


def test_beam_search_with_the_cache_is_that_without(ensemble, batch):
    options = {"max_new_tokens": 5, "num_beams": 4, "do_sample": False}
    with_cache = ensemble.generate(**batch, **options, use_cache=True)
    assert with_cache.tolist() == ensemble.generate(**batch, **options, use_cache=False).tolist()


def test_prompt_lookup_decoding_crops_the_cache_and_stays_greedy(ensemble, prompts):
    ids = torch.tensor([prompts[0] * 3])
    plain = ensemble.generate(ids, max_new_tokens=12, do_sample=False)
    assert ensemble.generate(ids, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3).tolist() == (
        plain.tolist()
    )


def test_a_streamer_gets_every_token(ensemble, prompts, tokenizer):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    output = ensemble.generate(torch.tensor([prompts[3]]), max_new_tokens=6, do_sample=False, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(output[0, len(prompts[3]) :])


def test_generate_continues_from_a_cache_of_the_user(ensemble, prompts):
    ids = torch.tensor([prompts[2]])
    cache = ensemble.new_cache()
    ensemble(ids[:, :6], past_key_values=cache)
    plain = ensemble.generate(ids, max_new_tokens=4, do_sample=False)
    assert ensemble.generate(ids, max_new_tokens=4, do_sample=False, past_key_values=cache).tolist() == plain.tolist()


def test_adapters_share_the_memory_of_their_base(adapter_folders):
    members = load_members(adapter_folders)
    model = EnsembleForCausalLM(members, WEIGHTS)
    base = sum(p.numel() for p in loading.load_causal_lm(adapter_folders[0].parent / "base").parameters())
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert sum(p.numel() for p in model.parameters()) == base + adapters
    assert len({id(member.model) for member in members}) == 1


def test_the_first_end_and_padding_tokens_come_from_the_members(ensemble):
    assert (ensemble.generation_config.eos_token_id, ensemble.generation_config.pad_token_id) == (2, 0)
    assert (ensemble.vocabulary, ensemble.context, ensemble.num_members) == (64, 64, 3)


def test_a_single_model_is_an_ensemble_of_one(experts, prompts):
    ids = torch.tensor([prompts[0]])
    one = as_ensemble(experts[0])
    torch.testing.assert_close(one(ids).logits, torch.log_softmax(experts[0](ids).logits, -1))
    assert as_ensemble(one) is one


def test_a_peft_model_alone_can_be_a_member(adapter_folders, prompts):
    model = loading.load_trained(adapter_folders[1])
    assert isinstance(model, PeftModel)
    result = decode(model, prompts, max_new_tokens=4, eos_ids=2, batch_size=4)
    merged = loading.load_trained(adapter_folders[1]).merge_and_unload()
    assert [g.token_ids for g in result] == [
        g.token_ids for g in decode(merged, prompts, max_new_tokens=4, eos_ids=2, batch_size=4)
    ]


def test_members_of_other_vocabularies_are_refused(make_model):
    with pytest.raises(ModelError, match="big has a vocabulary of 65 tokens and small one of 64"):
        EnsembleForCausalLM([make_model(0), make_model(1, vocabulary=65)], [1, 1], names=["small", "big"])


def test_the_shortest_context_of_the_members_counts(make_model):
    assert EnsembleForCausalLM([make_model(0), make_model(1, context=48)], [1, 1]).context == 48


def test_what_cannot_be_a_member_is_refused(make_model, adapter_folders):
    with pytest.raises(ModelError, match="at least one member"):
        EnsembleForCausalLM([], [])
    with pytest.raises(ModelError, match="1 models, 2 weights"):
        EnsembleForCausalLM([make_model(0)], [1.0, 1.0])
    adapted = loading.attach_lora(make_model(0), Lora(rank=2), seed=0)
    with pytest.raises(ModelError, match="is a base with adapters in its layers; pass its PeftModel"):
        EnsembleForCausalLM([adapted.get_base_model()], [1.0])
    with pytest.raises(ModelError, match="adapter other is not in its model, available: default"):
        EnsembleForCausalLM([AdapterMember(adapted, "other")], [1.0])
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ModelError, match="T5ForConditionalGeneration; expected a causal language model"):
        EnsembleForCausalLM([t5], [1.0])


def test_a_cache_of_another_kind_is_refused(ensemble, prompts):
    with pytest.raises(ModelError, match="DynamicCache; an ensemble needs one made by new_cache"):
        ensemble(torch.tensor([prompts[0]]), past_key_values=DynamicCache())
    with pytest.raises(ModelError, match="cache_implementation is 'static'"):
        ensemble.generate(torch.tensor([prompts[0]]), max_new_tokens=1, cache_implementation="static")


def test_saving_points_to_the_artifact(ensemble, tmp_path):
    with pytest.raises(ModelError, match="save_ensemble"):
        ensemble.save_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["full", "adapters"])
def test_a_log_likelihood_request_of_an_evaluation_harness_gives_what_score_gives(
    experts, adapter_folders, prompts, kind
):
    """As lm-evaluation-harness asks: context and continuation but its last token, padded on the right, no mask."""
    model = EnsembleForCausalLM(experts if kind == "full" else load_members(adapter_folders), WEIGHTS)
    greedy = decode(model, prompts, max_new_tokens=4, eos_ids=(), batch_size=4)
    continuations = [g.token_ids if i % 2 else prompts[i][::-1] for i, g in enumerate(greedy)]
    inputs = [(context + answer)[:-1] for context, answer in zip(prompts, continuations, strict=True)]
    width = max(map(len, inputs))
    with torch.no_grad():
        logits = model(torch.tensor([row + [0] * (width - len(row)) for row in inputs])).logits
    log_probs = torch.log_softmax(logits, dim=-1)
    expected = score(model, prompts, continuations, pad_id=0, batch_size=3)
    for row, answer, length, result in zip(log_probs, continuations, map(len, inputs), expected, strict=True):
        part, taken = row[length - len(answer) : length], torch.tensor(answer)
        likelihood = part.gather(1, taken.unsqueeze(-1)).sum().item()
        assert likelihood == pytest.approx(float(result.logprobs.sum()), abs=1e-3)
        assert bool((part.argmax(-1) == taken).all()) == bool(result.correct.all())
    assert {bool(result.correct.all()) for result in expected} == {True, False}


def test_generate_is_greedy_like_the_engine_before_and_after_it_ran(make_model, prompts):
    model = EnsembleForCausalLM([make_model(seed) for seed in (30, 31)], [1.0, 2.0])

    def generated() -> list[int]:
        return model.generate(torch.tensor([prompts[2]]), max_new_tokens=6, do_sample=False, eos_token_id=[])[
            0, len(prompts[2]) :
        ].tolist()

    before = generated()
    [answer] = decode(model, [prompts[2]], max_new_tokens=6, eos_ids=(), batch_size=1)
    assert before == answer.token_ids == generated()

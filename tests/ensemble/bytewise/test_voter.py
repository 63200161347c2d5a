"""A voter of several tokenizers answers as an engine does: bytes are its tokens, 256 is the end."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ensemw2s.config import DataConfig, FilesSource, SplitConfig
from ensemw2s.ensemble.bytewise.answers import ByteAnswer
from ensemw2s.ensemble.bytewise.mixture import VoiceModel
from ensemw2s.ensemble.bytewise.vocabulary import END
from ensemw2s.ensemble.bytewise.voter import ByteText, ByteVoter, LoadedMixture, as_generation
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Generation
from ensemw2s.errors import DataError

DATA = DataConfig(source=FilesSource(paths=["-"]), split=SplitConfig(mode="random"), answer_prefix=" ")


@pytest.fixture(scope="module")
def voter(tokenizers: dict[str, PreTrainedTokenizerFast], make_model: Callable[..., LlamaForCausalLM]) -> ByteVoter:
    kinds = [tokenizers["bytes"], tokenizers["across spaces"]]
    models = [make_model(seed, vocabulary=len(kind), context=64) for seed, kind in enumerate(kinds)]
    voices = [VoiceModel(EnsembleForCausalLM([m], [1.0]), kind, 1.0) for m, kind in zip(models, kinds, strict=True)]
    return ByteVoter(LoadedMixture(tuple(voices)), DATA, texts=4)


def test_answers_are_bytes_with_an_agreement_each(voter: ByteVoter) -> None:
    [answer] = voter.generate(voter.prompts(["sort 3 11"]), max_new_tokens=2)
    assert isinstance(answer, Generation)
    assert 0 < len(answer.token_ids) <= 8
    assert len(answer.agreement) == len(answer.token_ids) == len(answer.votes)
    assert answer.finish_reason == ("stop" if answer.token_ids[-1] == END else "length")
    assert set(np.unique(answer.agreement).tolist()) <= {0.0, 0.5, 1.0}


def test_a_prompt_that_does_not_fit_spoils_no_other(voter: ByteVoter) -> None:
    long, short = voter.generate(voter.prompts(["3 " * 99, "sort"]), max_new_tokens=1)
    assert isinstance(long, DataError)
    assert isinstance(short, Generation)


def test_scores_are_of_the_answer_with_its_prefix_and_end(voter: ByteVoter) -> None:
    [scored] = voter.score(voter.prompts(["sort 3 1"]), ["1 3"])
    assert isinstance(scored, ByteAnswer)
    assert scored.symbols.tolist() == [*b" 1 3", END]
    assert (scored.likeliest < 257).all()


def test_agreement_and_entropy_leave_out_who_sits_out() -> None:
    choices = np.array([[97, 98, 256], [97, 99, -1], [98, 99, -1]])
    none = np.zeros(3)
    answer = ByteAnswer("ab", True, none, none, choices, np.array([0.5, 0.25, 0.25]), none, none, none)
    assert answer.agreement.tolist() == [0.75, 0.5, 1.0]
    assert answer.entropy.tolist() == pytest.approx([-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(2), 0])
    assert as_generation(answer).token_ids == [97, 98, END]


def test_bytes_are_read_as_text_without_the_end() -> None:
    assert ByteText().decode([*"é".encode(), END], skip_special_tokens=True) == "é"

"""An ensemble folder with several tokenizers: it loads, writes and scores texts, and all else refuses it by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ensemw2s import Ensemble
from ensemw2s.cli.models import facts
from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
from ensemw2s.ensemble.manifest import read_manifest
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.errors import ArtifactError, ModelError
from ensemw2s.models import loading, tiny

TEXT = "sort 0 1 2 3 4 5 6 7 8 9 = up down"


@pytest.fixture(scope="module")
def members(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., LlamaForCausalLM]
) -> list[MemberSource]:
    """Two members of one tokenizer, and between them one of another."""
    root = tmp_path_factory.mktemp("members")
    kinds: list[PreTrainedTokenizerFast] = [tiny.train_tokenizer([TEXT] * 3, size) for size in (30, 48)]
    for index in range(3):
        tokenizer = kinds[index % 2]
        model = make_model(index, vocabulary=len(tokenizer), context=64)
        loading.save_trained(model, tokenizer, root / f"expert-{index}")
    return [MemberSource(f"expert-{i}", root / f"expert-{i}", 1.0, 1.0 + i, i + 1) for i in range(3)]


@pytest.fixture(scope="module")
def mixed(members: list[MemberSource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "ensemble"
    save_ensemble(folder, members=members, rule="probability")
    return folder


def test_members_of_several_tokenizers_are_saved_with_a_tokenizer_each(mixed: Path) -> None:
    manifest = json.loads((mixed / "ensemble.json").read_text())
    assert manifest["format_version"] == 2
    assert [member["tokenizer"] for member in manifest["members"]] == ["tokenizers/0", "tokenizers/1", "tokenizers/0"]
    assert sorted(path.name for path in mixed.iterdir()) == ["ensemble.json", "members", "tokenizers"]


def test_its_models_are_listed_with_their_tokenizers(mixed: Path) -> None:
    listed = [found.tokenizer for found in facts(str(mixed))]
    assert listed[0] == listed[2] != listed[1]


def test_it_writes_and_scores_texts_by_bytes(mixed: Path) -> None:
    ensemble = Ensemble.from_pretrained(mixed)
    [answer] = ensemble.generate(["sort 3 1 2 ="], max_new_bytes=8)
    [scored] = ensemble.score(["sort 3 1 2 ="], [answer.text], end=answer.ended)
    assert scored.logprobs == pytest.approx(answer.logprobs, abs=1e-3)
    assert answer.shares == pytest.approx([4 / 6, 2 / 6])
    assert repr(ensemble) == "MixedEnsemble(expert-0, expert-2, expert-1)"
    assert len(Ensemble.from_pretrained(mixed, rounds=1).score(["sort 1"], [" 2"])[0].shares) == 1


def test_whatever_votes_on_token_ids_refuses_it_by_name(mixed: Path) -> None:
    ensemble = Ensemble.from_pretrained(mixed)
    with pytest.raises(ModelError, match="this ensemble has 2 tokenizers, so it has no model: Engine"):
        _ = ensemble.model
    with pytest.raises(ModelError, match="so it has no tokenizer"):
        _ = ensemble.tokenizer
    assert not hasattr(ensemble, "anything")
    for use in (read_manifest, EnsembleForCausalLM.from_pretrained):
        with pytest.raises(
            ArtifactError, match=r"members of 2 tokenizers.*labelling, evaluation, serving and Engine need"
        ):
            use(mixed)


def test_members_of_one_tokenizer_make_the_folder_that_they_always_made(
    members: list[MemberSource], tmp_path: Path
) -> None:
    tokenizer = loading.load_tokenizer(members[0].directory)
    chosen = members[::2]
    save_ensemble(tmp_path / "given", members=chosen, rule="vote", tokenizer=tokenizer)
    save_ensemble(tmp_path / "found", members=chosen, rule="vote")
    given, found = [(tmp_path / name / "ensemble.json").read_text() for name in ("given", "found")]
    assert given == found
    assert json.loads(given)["format_version"] == 1
    assert "tokenizers" not in given
    assert '"tokenizer":' not in given


def test_an_ensemble_of_one_tokenizer_scores_by_bytes_too(members: list[MemberSource], tmp_path: Path) -> None:
    save_ensemble(tmp_path / "one", members=members[::2], rule="probability")
    [scored] = Ensemble.from_pretrained(tmp_path / "one").score(["sort 3 1 ="], [" 1 3"])
    assert len(scored.shares) == 1


def test_other_rules_are_refused_where_tokenizers_differ(members: list[MemberSource], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="2 tokenizers and the rule vote; over bytes, the rule is probability"):
        save_ensemble(tmp_path / "vote", members=members, rule="vote")
    assert not (tmp_path / "vote").exists()


def test_a_member_whose_tokenizer_is_not_there_is_damage(mixed: Path, tmp_path: Path) -> None:
    tree = json.loads((mixed / "ensemble.json").read_text())
    tree["members"][0]["tokenizer"] = "tokenizers/7"
    (tmp_path / "ensemble.json").write_text(json.dumps(tree))
    with pytest.raises(ArtifactError, match="tokenizer tokenizers/7 of member expert-0 is none of"):
        Ensemble.from_pretrained(tmp_path)

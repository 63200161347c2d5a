import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ensemw2s.ensemble.anchor import Anchor
from ensemw2s.ensemble.artifact import Ensemble, MemberSource, save_ensemble
from ensemw2s.ensemble.decoding import decode
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.voter import Voter, load_voters
from ensemw2s.errors import ArtifactError, ModelError
from ensemw2s.models import loading, tiny

GREEDY = {"max_new_tokens": 6, "eos_ids": 2, "batch_size": 4}


def sources(folders: list[Path], weights: list[float]) -> list[MemberSource]:
    return [
        MemberSource(f"expert-{i}", folder, alpha=weight, weight=max(weight, 0.0), round=i + 1, weighted_error=0.2)
        for i, (folder, weight) in enumerate(zip(folders, weights, strict=True))
    ]


@pytest.fixture(scope="module")
def full(tmp_path_factory, full_folders, tokenizer) -> Path:
    """Three rounds; the second member has a negative alpha."""
    path = tmp_path_factory.mktemp("artifact") / "full"
    save_ensemble(path, members=sources(full_folders, [1.0, -0.5, 1.5]), rule="log_probability", tokenizer=tokenizer)
    return path


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, adapter_folders, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "adapters"
    save_ensemble(path, members=sources(adapter_folders, [1.0, 2.0, 1.5]), rule="probability", tokenizer=tokenizer)
    return path


@pytest.fixture
def damaged(full, tmp_path) -> Path:
    return Path(shutil.copytree(full, tmp_path / "damaged"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    tree = json.loads((path / "ensemble.json").read_text())
    change(tree)
    (path / "ensemble.json").write_text(json.dumps(tree))


def decoded(model: EnsembleForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    return [generation.token_ids for generation in decode(model, prompts, **GREEDY)]


def test_a_loaded_ensemble_votes_as_its_members_did(full, experts, prompts):
    loaded = Ensemble.from_pretrained(full)
    assert decoded(loaded.model, prompts) == decoded(
        EnsembleForCausalLM([experts[0], experts[2]], [1.0, 1.5], "log_probability"), prompts
    )
    assert loaded.model.names == ["expert-0", "expert-2"]
    assert loaded.tokenizer.eos_token_id == 2


def test_a_member_without_a_vote_is_recorded_but_not_kept(full):
    manifest = Ensemble.from_pretrained(full).manifest
    assert [(m.name, m.alpha, m.weight, m.round, m.weighted_error) for m in manifest.members] == [
        ("expert-0", 1.0, 1.0, 1, 0.2),
        ("expert-1", -0.5, 0.0, 2, 0.2),
        ("expert-2", 1.5, 1.5, 3, 0.2),
    ]
    assert manifest.members[1].path is None
    assert sorted(p.name for p in (full / "members").iterdir()) == ["expert-0", "expert-2"]


def test_temperatures_go_along_and_are_written_only_where_there_are_any(
    full, full_folders, experts, tokenizer, prompts, tmp_path
):
    members = sources(full_folders, [1.0, 2.0, 1.5])
    members[1] = replace(members[1], temperature=2.5)
    save_ensemble(tmp_path / "e", members=members, rule="probability", tokenizer=tokenizer)
    written = json.loads((tmp_path / "e" / "ensemble.json").read_text())["members"]
    assert [m.get("temperature") for m in written] == [None, 2.5, None]
    loaded = Ensemble.from_pretrained(tmp_path / "e")
    assert loaded.model.temperatures == [1.0, 2.5, 1.0]
    expected = EnsembleForCausalLM(experts, [1.0, 2.0, 1.5], temperatures=[1.0, 2.5, 1.0])
    assert decoded(loaded.model, prompts) == decoded(expected, prompts)
    old = Ensemble.from_pretrained(full)
    assert [m.temperature for m in old.manifest.members] == [1.0, 1.0, 1.0]
    assert old.model.temperatures == []
    assert old.manifest.model_dump(mode="json") == json.loads((full / "ensemble.json").read_text())


def test_an_alpha_that_is_not_positive_takes_the_vote_whatever_the_weight(tmp_path, full_folders, tokenizer):
    members = sources(full_folders, [1.0, 1.0, 1.0])
    members[0] = replace(members[0], alpha=0.0)
    manifest = save_ensemble(tmp_path / "e", members=members, rule="vote", tokenizer=tokenizer)
    assert [member.weight for member in manifest.members] == [0.0, 1.0, 1.0]


def test_the_first_rounds_are_an_ensemble_of_their_own(adapters, adapter_folders, prompts):
    loaded = Ensemble.from_pretrained(adapters, rounds=2)
    assert [member.name for member in loaded.members] == ["expert-0", "expert-1"]
    models = [loading.load_trained(folder) for folder in adapter_folders[:2]]
    assert decoded(loaded.model, prompts) == decoded(EnsembleForCausalLM(models, [1.0, 2.0]), prompts)


@pytest.mark.slow
def test_the_folder_moves_with_its_base_and_needs_nothing_else(adapters, adapter_folders, prompts, tmp_path):
    expected = decoded(Ensemble.from_pretrained(adapters).model, prompts)
    moved = shutil.copytree(adapters, tmp_path / "elsewhere")
    base = adapter_folders[0].parent / "base"
    hidden = base.rename(base.with_name("hidden"))
    try:
        loaded = Ensemble.from_pretrained(moved)
    finally:
        hidden.rename(base)
    assert decoded(loaded.model, prompts) == expected
    assert sorted(p.name for p in (moved / "base").iterdir()) == ["0"]
    for file in moved.rglob("*.json"):
        assert str(base) not in file.read_text(), file


def test_a_hub_base_stays_an_id_with_its_revision(adapter_folders, tokenizer, tmp_path):
    folder = Path(shutil.copytree(adapter_folders[0], tmp_path / "expert"))
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "someone/some-model", "revision": "abc123"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    manifest = save_ensemble(tmp_path / "e", members=sources([folder], [1.0]), rule="probability", tokenizer=tokenizer)
    assert [(b.path, b.revision, b.files) for b in manifest.base_models] == [("someone/some-model", "abc123", {})]
    saved = json.loads((tmp_path / "e" / "members" / "expert-0" / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["revision"]) == ("someone/some-model", "abc123")


def test_full_members_and_adapters_mix_in_one_artifact(full_folders, adapter_folders, tokenizer, prompts, tmp_path):
    folders = [full_folders[0], adapter_folders[0]]
    save_ensemble(tmp_path / "e", members=sources(folders, [1.0, 1.0]), rule="probability", tokenizer=tokenizer)
    models = [loading.load_trained(folder) for folder in folders]
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path / "e")
    assert decoded(loaded, prompts) == decoded(EnsembleForCausalLM(models, [1.0, 1.0]), prompts)


def test_only_what_a_model_needs_is_copied(full_folders, tokenizer, tmp_path):
    folder = Path(shutil.copytree(full_folders[0], tmp_path / "expert"))
    (folder / "optimizer.pt").write_bytes(b"large")
    save_ensemble(tmp_path / "e", members=sources([folder], [1.0]), rule="probability", tokenizer=tokenizer)
    assert sorted(p.name for p in (tmp_path / "e" / "members" / "expert-0").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_members_are_loaded_in_the_type_asked_for(full, prompts):
    model = Ensemble.from_pretrained(full, dtype=torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(torch.tensor([prompts[0]])).logits.dtype == torch.float32


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "ensemble.json").unlink(), "is no ensemble: ensemble.json is missing"),
        (lambda p: (p / "ensemble.json").write_text('{"form'), "ensemble.json cannot be read"),
        (lambda p: (p / "ensemble.json").write_text("[]"), "ensemble.json is damaged"),
        (lambda p: edit(p, lambda t: t.pop("combine")), "ensemble.json is damaged: combine: field required"),
        (lambda p: edit(p, lambda t: t.update(combine="mean")), "ensemble.json is damaged: combine"),
        (lambda p: edit(p, lambda t: t.update(format_version=3)), "format version 3, this release reads up to 2"),
        (lambda p: edit(p, lambda t: t["members"][0].update(path=None)), "member expert-0 votes, but has no path"),
        (lambda p: edit(p, lambda t: t["members"][0].update(path="../full")), "outside the artifact"),
        (lambda p: edit(p, lambda t: t["members"][0].update(base="base/0")), "member expert-0 has no base entry"),
        (lambda p: edit(p, lambda t: t["members"][0].update(temperature=0)), "damaged: members.0.temperature"),
        (lambda p: edit(p, lambda t: t.update(members=[])), "no member with a positive weight"),
        (lambda p: edit(p, lambda t: t.update(tokenizer_hash="0" * 64)), "its tokenizer has hash"),
        (lambda p: shutil.rmtree(p / "tokenizer"), "tokenizer/ is missing"),
        (lambda p: (p / "tokenizer" / "tokenizer.json").write_text("{"), "tokenizer of .* cannot be loaded"),
        (lambda p: shutil.rmtree(p / "members" / "expert-2"), "members/expert-2/config.json is missing"),
        (
            lambda p: (p / "members" / "expert-0" / "model.safetensors").unlink(),
            "members/expert-0/model.safetensors is missing",
        ),
        (
            lambda p: flip_a_byte(p / "members" / "expert-0" / "model.safetensors"),
            "members/expert-0/model.safetensors has SHA-256",
        ),
    ],
)
def test_a_damaged_artifact_is_refused_with_the_reason(damaged, damage, message):
    damage(damaged)
    with pytest.raises(ArtifactError, match=message):
        Ensemble.from_pretrained(damaged)


def test_damage_that_no_checksum_was_asked_about_is_found_by_loading(damaged):
    file = damaged / "members" / "expert-0" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ArtifactError, match="a safetensors file is damaged"):
        Ensemble.from_pretrained(damaged, verify=False)


def test_a_damaged_base_is_refused(adapters, tmp_path):
    copy = Path(shutil.copytree(adapters, tmp_path / "damaged"))
    flip_a_byte(copy / "base" / "0" / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"base/0/model.safetensors has SHA-256"):
        Ensemble.from_pretrained(copy)


def test_a_tokenizer_larger_than_the_members_vocabulary_is_refused(make_model, tmp_path, tokenizer):
    loading.save_trained(make_model(0, vocabulary=60), tokenizer, tmp_path / "small")
    members = sources([tmp_path / "small"], [1.0])
    save_ensemble(tmp_path / "e", members=members, rule="probability", tokenizer=tokenizer)
    with pytest.raises(ArtifactError, match="members know 60 tokens, its tokenizer has 64"):
        Ensemble.from_pretrained(tmp_path / "e")


def test_rounds_without_a_vote_are_refused(full_folders, tokenizer, tmp_path):
    members = sources(full_folders, [-1.0, 1.0, 1.0])
    save_ensemble(tmp_path / "e", members=members, rule="probability", tokenizer=tokenizer)
    with pytest.raises(ArtifactError, match=r"no member with a positive weight in rounds 1 to 1, only in \[2, 3\]"):
        Ensemble.from_pretrained(tmp_path / "e", rounds=1)


def test_what_cannot_be_saved_is_refused(full_folders, tokenizer, tmp_path, full):
    members = sources(full_folders, [1.0, 1.0, 1.0])
    options = {"rule": "probability", "tokenizer": tokenizer}
    with pytest.raises(ArtifactError, match="none of the 3 members has a positive weight and alpha"):
        save_ensemble(tmp_path / "a", members=sources(full_folders, [0.0, -1.0, 0.0]), **options)
    with pytest.raises(ArtifactError, match="'expert-0' must be unique"):
        save_ensemble(tmp_path / "b", members=[members[0], members[0]], **options)
    with pytest.raises(ArtifactError, match=r"'../x' must be unique, of letters"):
        save_ensemble(tmp_path / "c", members=[replace(members[0], name="../x")], **options)
    with pytest.raises(ArtifactError, match="weight of member expert-0 is nan"):
        save_ensemble(tmp_path / "d", members=[replace(members[0], weight=float("nan"))], **options)
    with pytest.raises(ArtifactError, match=r"has ensemble.json already"):
        save_ensemble(full, members=members, **options)
    with pytest.raises(ModelError, match="holds no safetensors weights"):
        save_ensemble(tmp_path / "e", members=[replace(members[0], directory=tmp_path / "gone")], **options)
    assert not any((tmp_path / name).exists() for name in "abcd")


def test_members_of_another_tokenizer_are_refused(full_folders, tmp_path):
    other = tiny.train_tokenizer(["another text altogether"], 64)
    with pytest.raises(ModelError, match="expert-0 and the ensemble have different tokenizers"):
        save_ensemble(tmp_path / "e", members=sources(full_folders[:1], [1.0]), rule="vote", tokenizer=other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full_folders", "adapter_folders"])
def test_an_anchored_artifact_answers_as_its_members_anchored_in_memory(
    kind, request, full_folders, adapter_folders, tokenizer, prompts, tmp_path
) -> None:
    folders = request.getfixturevalue(kind)
    base = str(adapter_folders[0].parent / "base")
    members = [replace(source, anchor=Anchor(base, 0.5)) for source in sources(folders, [1.0, 2.0, 1.5])]
    save_ensemble(tmp_path / "ensemble", members=members, rule="probability", tokenizer=tokenizer)
    saved = Ensemble.from_pretrained(tmp_path / "ensemble").model
    described = {"name": "anchored", "models": [str(f) for f in folders], "weights": [1.0, 2.0, 1.5]}
    [anchored] = load_voters([Voter(**described, anchor=0.5, bases=[base] * 3)], device="cpu")
    [trained] = load_voters([Voter(**described)], device="cpu")
    found = [decode(model, prompts, **GREEDY) for model in (saved, anchored.model, trained.model)]
    assert [g.token_ids for g in found[0]] == [g.token_ids for g in found[1]]
    assert all((a.logprobs == b.logprobs).all() for a, b in zip(found[0], found[1], strict=True))
    assert [g.token_ids for g in found[0]] != [g.token_ids for g in found[2]]

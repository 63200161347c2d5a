from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ensemw2s.config import (
    ALL_SYSTEMS,
    SYSTEMS,
    Config,
    FilesSource,
    HuggingFaceSource,
    dump_config,
    load_config,
    parse_config,
)
from ensemw2s.errors import ConfigError, EnsemW2SError

ROOT = Path(__file__).parents[2]

Write = Callable[[Any], Path]

TEXT = st.text()


def tree(**changes: Any) -> dict[str, Any]:
    """The smallest valid config, with `a__b=value` put in at a.b."""
    base: dict[str, Any] = {
        "name": "small",
        "data": {"source": {"kind": "reasoning_gym", "dataset": "number_sorting"}},
        "models": {"weak": [{"base": "tiny-weak"}], "strong": {"base": "tiny-strong"}},
    }
    for key, value in changes.items():
        node = base
        *parents, last = key.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return base


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a config file from text or from a tree."""

    def to_file(content: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return to_file


def mistakes(**changes: Any) -> list[str]:
    """The lines that a wrong config is answered with, without the heading."""
    with pytest.raises(ConfigError) as caught:
        parse_config(tree(**changes))
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_the_smallest_config_is_complete() -> None:
    config = parse_config(tree())
    assert config.boosting.rounds == 5
    assert config.evaluation.systems == list(SYSTEMS)
    assert config.models.weak_names == ["weak-0"]
    assert config.models.strong.is_tiny


def test_a_section_keeps_the_defaults_of_its_place_when_one_key_is_given() -> None:
    config = parse_config(tree(boosting__rounds=2))
    assert config.boosting.rounds == 2
    assert config.boosting.shrinkage == 0.3


def test_a_config_cannot_be_changed() -> None:
    config = parse_config(tree())
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_the_kind_of_a_source_chooses_its_keys() -> None:
    files = parse_config(
        tree(data__source={"kind": "files", "paths": ["a.jsonl"]}, data__split={"difficulty_from": "answer_length"})
    )
    assert isinstance(files.data.source, FilesSource)
    hub = parse_config(
        tree(
            data__source={"kind": "huggingface", "path": "org/set", "columns": {"difficulty": "level"}},
            data__split={"difficulty_from": "column"},
        )
    )
    assert isinstance(hub.data.source, HuggingFaceSource)


def test_scientific_notation_that_yaml_reads_as_text_is_a_number(write: Write) -> None:
    text = yaml.safe_dump(tree()) + "expert: {learning_rate: 1e-4}\n"
    assert load_config(write(text)).expert.learning_rate == 1e-4


def test_null_switches_the_weight_limit_off() -> None:
    assert parse_config(tree(boosting__weight_clip=None)).boosting.weight_clip is None


def test_the_student_of_a_later_generation_is_compared_where_no_systems_are_named() -> None:
    default = parse_config(tree(student__generations=2)).evaluation.systems
    assert default == [name for name in ALL_SYSTEMS if name in (*SYSTEMS, "student_generations")]
    named = parse_config(tree(student__generations=2, evaluation__systems=["student_generations", "ensemw2s"]))
    assert named.evaluation.systems == ["ensemw2s", "student_generations"]


def test_systems_are_kept_in_the_order_of_the_table() -> None:
    config = parse_config(tree(evaluation__systems=["ensemw2s", "bagging", "base_zero_shot"]))
    assert config.evaluation.systems == ["base_zero_shot", "bagging", "ensemw2s"]


@pytest.mark.parametrize("path", sorted((ROOT / "ensemw2s" / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_of_the_repository_is_valid(path: Path) -> None:
    assert load_config(path).name


def test_all_mistakes_of_a_file_are_reported_at_once(write: Write) -> None:
    path = write(
        tree(
            name="two words",
            seed=-1,
            boosting__rounds=0,
            boosting__shrinkage=1.5,
            expert__learning_rate="fast",
            student__objective="magic",
            data__sizes={"id_test": 0},
            clutser={},
        )
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"{path} has 8 mistakes:"
    keys = {line.strip().partition(":")[0] for line in lines}
    assert keys == {
        "name",
        "seed",
        "boosting.rounds",
        "boosting.shrinkage",
        "expert.learning_rate",
        "student.objective",
        "data.sizes.id_test",
        "clutser",
    }


def test_a_single_mistake_is_called_one() -> None:
    with pytest.raises(ConfigError, match=r"^config has a mistake:\n  seed: "):
        parse_config(tree(seed=-1))


def test_a_config_error_is_one_of_ours() -> None:
    assert issubclass(ConfigError, EnsemW2SError)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({})
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "name: is missing",
        "data: is missing",
        "models: is missing",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"boosting__rounds": 0}, "boosting.rounds: input should be greater than or equal to 1 (it is 0)"),
        ({"boosting__shrinkage": 0}, "boosting.shrinkage: input should be greater than 0 (it is 0)"),
        ({"boosting__weight_clip": 1}, "boosting.weight_clip: input should be greater than 1 (it is 1)"),
        ({"data__split": {"reference": {"folds": 1}}}, "data.split.reference.folds: input should be greater than or"),
        ({"student__keep_fraction": 0}, "student.keep_fraction: input should be greater than 0 (it is 0)"),
        ({"labeling__soft_top_k": 257}, "labeling.soft_top_k: input should be less than or equal to 256 (it is 257)"),
        ({"training__zero_stage": 4}, "training.zero_stage: input should be 0, 1, 2 or 3 (it is 4)"),
        ({"boosting__unit": "word"}, "boosting.unit: input should be 'token', 'window' or 'example' (it is 'word')"),
        ({"seed": 2**31}, "seed: input should be less than 2147483648 (it is 2147483648)"),
        ({"boosting__rounds": 2.5}, "boosting.rounds: input should be a valid integer"),
        ({"student__mix_easy": "perhaps"}, "student.mix_easy: input should be a valid boolean"),
        ({"models__weak": []}, "models.weak: list should have at least 1 item"),
        ({"expert__weight_decay": float("nan")}, "expert.weight_decay: input should be "),
        ({"name": ""}, "name: string should match pattern"),
        ({"name": "../up"}, "name: string should match pattern"),
        ({"data__answer_match": "close"}, "data.answer_match: input should be 'exact' or 'numeric' (it is 'close')"),
        ({"data__answer_match": {"kind": "regex", "pattern": "("}}, "data.answer_match.pattern: is no regular expres"),
        ({"data__answer_match": {"kind": "close"}}, "data.answer_match.kind: close is unknown. Valid: regex, function"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_bound(changes: dict[str, Any], expected: str) -> None:
    lines = mistakes(**changes)
    assert len(lines) == 1
    assert lines[0].startswith(expected)


@pytest.mark.parametrize(
    ("changes", "key", "nearest"),
    [
        ({"studnt": {}}, "studnt", "student"),
        ({"boosting__round": 3}, "boosting.round", "rounds"),
        ({"expert__lr_rate": 3}, "expert.lr_rate", "learning_rate"),
        ({"data__source": {"kind": "files", "paths": ["a"], "column": {}}}, "data.source.column", "columns"),
        (
            {"data__source": {"kind": "reasoning_gym", "dataset": "x", "columns": {"promt": "q"}}},
            "data.source.columns.promt",
            "prompt",
        ),
        ({"models__weak": [{"base": "x"}, {"base": "x", "nam": "y"}]}, "models.weak.1.nam", "name"),
        ({"models__strong": {"base": "x", "lora": {"ran": 4}}}, "models.strong.lora.ran", "rank"),
        ({"boosting__members": [{"modle": "weak-0"}]}, "boosting.members.0.modle", "model"),
        ({"models__pretraining": {"corpus": {"corrupt": 4}}}, "models.pretraining.corpus.corrupt", "corrupted"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_and_the_valid_ones(
    changes: dict[str, Any], key: str, nearest: str
) -> None:
    (line,) = mistakes(**changes)
    assert line.startswith(f"{key}: unknown key; did you mean {nearest}? Valid keys: ")
    assert nearest in line.partition("Valid keys: ")[2].split(", ")


def test_valid_keys_are_those_of_the_section_and_no_others() -> None:
    (line,) = mistakes(ensemble__zzz=1)
    assert line == "ensemble.zzz: unknown key. Valid keys: calibration, combine, weights"


def test_valid_keys_of_a_source_are_those_of_its_kind() -> None:
    (line,) = mistakes(
        data__hard_source={"kind": "huggingface", "path": "p", "zzz": 1}, data__split={"mode": "cross_source"}
    )
    assert line == "data.hard_source.zzz: unknown key. Valid keys: columns, kind, name, path, revision, split, where"


def test_free_keys_of_a_generator_are_not_judged_here() -> None:
    config = parse_config(tree(data__source={"kind": "reasoning_gym", "dataset": "x", "easy": {"anything": [1, 2]}}))
    assert config.data.source.easy == {"anything": [1, 2]}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__split": {"mode": "cross_source"}}, "split.mode cross_source needs hard_source"),
        (
            {"data__hard_source": {"kind": "files", "paths": ["a"]}},
            "hard_source is only read in split.mode cross_source, not difficulty",
        ),
        (
            {"data__source": {"kind": "files", "paths": ["a"]}},
            "split.difficulty_from source needs a reasoning_gym source, not files: "
            "use column, answer_length or reference_loss",
        ),
        (
            {"data__split": {"difficulty_from": "column"}},
            "split.difficulty_from column needs source.columns.difficulty",
        ),
        ({"data__prompt_template": "Question:"}, "data.prompt_template: must contain {prompt} (it is 'Question:')"),
        ({"boosting__members": [{}, {"model": "x"}]}, "boosting.members.1.model is x, available: weak-0"),
        ({"student__objective": "soft"}, "student.objective soft needs labeling.soft_top_k of at least 1"),
        (
            {"evaluation__systems": ["student_generations"]},
            "evaluation.systems has student_generations, but student.generations is 1",
        ),
        (
            {"evaluation__systems": ["student_ensemw2s"], "student__generations": 2},
            "student.generations is 2, but evaluation.systems does not have student_generations: add it",
        ),
        ({"labeling": {"min_actors": 3, "max_actors": 2}}, "max_actors is 2, less than min_actors 3"),
        (
            {"models__weak": [{"base": "x", "name": "a"}, {"base": "y", "name": "a"}]},
            "models.weak: names must differ, but a is there more than once",
        ),
        (
            {"models__weak": [{"base": "x", "name": "weak-1"}, {"base": "y"}]},
            "models.weak: names must differ, but weak-1 is there more than once",
        ),
        ({"evaluation__systems": ["bagging", "baging"]}, "baging is not a system; did you mean bagging? "),
    ],
)
def test_keys_that_do_not_fit_each_other_are_named(changes: dict[str, Any], message: str) -> None:
    (line,) = mistakes(**changes)
    assert message in line


@pytest.mark.parametrize(
    "changes",
    [
        {"student__objective": "soft", "labeling__soft_top_k": 8},
        {"models__weak": [{"base": "x", "name": "a"}, {"base": "y"}], "boosting__members": [{"model": "weak-1"}]},
        {"data__split": {"mode": "cross_source"}, "data__hard_source": {"kind": "files", "paths": ["a"]}},
        {"data__source": {"kind": "files", "paths": ["a"]}, "data__split": {"mode": "random"}},
        {"labeling": {"min_actors": 2, "max_actors": 2}},
    ],
)
def test_keys_that_fit_each_other_pass(changes: dict[str, Any]) -> None:
    assert isinstance(parse_config(tree(**changes)), Config)


def test_a_missing_file_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config .*nowhere\.yaml cannot be read: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize("text", ["a: [1", "\ta: 1", "a: b: c", 'a: "open', "a: 1\n b: 2", "a: *nowhere"])
def test_text_that_is_not_yaml_is_refused_with_the_line(write: Write, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml is not valid YAML: (.|\n)*line \d+"):
        load_config(write(text))


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- 1\n- 2", "list"), ("just text", "str"), ("3", "int")])
def test_yaml_that_is_no_mapping_is_refused(write: Write, text: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"must be a mapping of keys to values, not {kind}"):
        load_config(write(text))


def test_yaml_that_makes_objects_is_refused(write: Write) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write("name: !!python/object/apply:os.getcwd []"))


def test_keys_that_are_not_text_are_refused(write: Write) -> None:
    with pytest.raises(ConfigError, match="keys should be strings"):
        load_config(write({**tree(), 1: 2}))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("boosting.rounds=3", "boosting.rounds", 3),
        (" boosting.rounds = 3 ", "boosting.rounds", 3),
        ("seed=7", "seed", 7),
        ("expert.learning_rate=1e-4", "expert.learning_rate", 1e-4),
        ("boosting.weight_clip=null", "boosting.weight_clip", None),
        ("boosting.weight_clip=", "boosting.weight_clip", None),
        ("student.mix_easy=false", "student.mix_easy", False),
        ("evaluation.systems=[bagging, ensemw2s]", "evaluation.systems", ["bagging", "ensemw2s"]),
        ("data.prompt_template='{prompt} ='", "data.prompt_template", "{prompt} ="),
        ("data.prompt_template=x = {prompt}", "data.prompt_template", "x = {prompt}"),
        ("cluster.address=ray://head:10001", "cluster.address", "ray://head:10001"),
        ("data.source.easy.max_numbers=4", "data.source.easy", {"max_numbers": 4}),
    ],
)
def test_set_replaces_one_value(write: Write, override: str, key: str, value: Any) -> None:
    found: Any = load_config(write(tree()), [override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_set_reaches_list_items_by_their_index(write: Write) -> None:
    weak = [{"base": "tiny-weak"}, {"base": "tiny-weak", "pretraining_seed": 1}]
    config = load_config(
        write(tree(models__weak=weak)), ["models.weak.1.pretraining_seed=9", "models.weak.0.lora.rank=2"]
    )
    assert [model.pretraining_seed for model in config.models.weak] == [0, 9]
    assert config.models.weak[0].lora is not None
    assert config.models.weak[0].lora.rank == 2
    assert config.models.weak[1].lora is None


def test_set_replaces_a_whole_list_item(write: Write) -> None:
    config = load_config(write(tree()), ["models.weak.0={base: org/model, name: other}"])
    assert config.models.weak_names == ["other"]


def test_the_last_set_of_a_key_holds(write: Write) -> None:
    assert load_config(write(tree()), ["seed=1", "seed=2"]).seed == 2


def test_set_may_supply_what_the_file_lacks(write: Write) -> None:
    without_name = {key: value for key, value in tree().items() if key != "name"}
    assert load_config(write(without_name), ["name=given"]).name == "given"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("boosting.rounds", "expected dotted.key=value"),
        ("=3", "expected dotted.key=value"),
        ("boosting.rounds=[1", "the value is not valid YAML"),
        ("models.weak.1.base=x", "models.weak.1 does not exist, the list has 1 items"),
        ("models.weak.-1.base=x", "models.weak.-1 does not exist, the list has 1 items"),
        ("models.weak.first.base=x", "models.weak.first does not exist, the list has 1 items"),
        ("name.first=x", "name is 'small' and has no keys"),
        ("data.source.dataset.x=3", "data.source.dataset is 'number_sorting' and has no keys"),
    ],
)
def test_a_set_that_reaches_nothing_is_refused(write: Write, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tree()), [override])
    assert str(caught.value) == f"--set {override}: {message}"


def test_set_cannot_reach_into_null(write: Write) -> None:
    with pytest.raises(ConfigError, match="boosting is null in the config and has no keys"):
        load_config(write(tree(boosting=None)), ["boosting.rounds=3"])


def test_a_set_of_an_unknown_key_is_answered_with_the_nearest(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"boosting\.round: unknown key; did you mean rounds\?"):
        load_config(write(tree()), ["boosting.round=3"])


def test_a_set_value_is_validated_too(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"boosting\.rounds: input should be greater than or equal to 1 \(it is 0\)"):
        load_config(write(tree()), ["boosting.rounds=0"])


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    rounds=st.integers(1, 50),
    rate=st.floats(1e-12, 1.0),
    clip=st.none() | st.floats(1.0, 1e9, exclude_min=True),
    template=TEXT.map(lambda text: f"{text}{{prompt}}{text}"),
    seeds=st.lists(st.integers(0, 2**40), min_size=1, max_size=4),
    documents=st.lists(TEXT, min_size=1, max_size=3),
)
def test_a_dumped_config_is_read_back_the_same(
    rounds: int, rate: float, clip: float | None, template: str, seeds: list[int], documents: list[str]
) -> None:
    config = parse_config(
        tree(
            boosting={"rounds": rounds, "weight_clip": clip},
            expert__learning_rate=rate,
            data__prompt_template=template,
            models__weak=[{"base": "tiny-weak", "pretraining_seed": seed} for seed in seeds],
            models__pretraining={"corpus": {"templates": documents}},
        )
    )
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_a_dumped_config_of_every_kind_of_source_can_be_loaded(write: Write) -> None:
    for source in (
        {"kind": "reasoning_gym", "dataset": "x", "easy": {"a": [1, 2.5, None, "é"]}},
        {"kind": "files", "paths": ["a.csv", "s3://bucket/b.parquet"]},
        {"kind": "huggingface", "path": "org/set", "split": "train+test"},
    ):
        config = parse_config(tree(data__source=source, data__split={"difficulty_from": "answer_length"}))
        assert load_config(write(dump_config(config))) == config


def test_a_dumped_config_names_every_key_in_the_order_of_the_classes() -> None:
    assert list(yaml.safe_load(dump_config(parse_config(tree())))) == list(Config.model_fields)


def test_an_unknown_key_that_is_also_a_kind_of_source_is_named_whole() -> None:
    assert mistakes(data__files=3)[0].startswith("data.files: unknown key")
    assert mistakes(data__source={"kind": "files", "paths": ["a"], "reasoning_gym": 1})[0].startswith(
        "data.source.reasoning_gym: unknown key"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"dataset": "x"}, "data.source.kind: is missing, valid: reasoning_gym, files, huggingface"),
        ({"kind": "file"}, "data.source.kind: file is unknown; did you mean files? Valid: reasoning_gym, files, hugg"),
        ("files", "data.source: must be a mapping of keys to values (it is 'files')"),
        (None, "data.source: must be a mapping of keys to values (it is None)"),
    ],
)
def test_a_source_of_no_kind_is_answered_with_the_kinds(source: Any, expected: str) -> None:
    (line,) = mistakes(data__source=source)
    assert line.startswith(expected)


def test_a_section_without_keys_is_named_without_python_names() -> None:
    assert mistakes(boosting=None) == ["boosting: must be a mapping of keys to values (it is None)"]


def test_a_value_of_two_possible_types_keeps_its_dotted_key() -> None:
    lines = mistakes(models__strong={"base": "x", "lora": {"target_modules": "q"}})
    assert {line.partition(":")[0] for line in lines} == {"models.strong.lora.target_modules"}


def test_all_rules_that_a_section_breaks_are_reported_with_their_dotted_keys() -> None:
    assert mistakes(boosting__members=[{"model": "a"}, {"model": "b"}], student__objective="soft") == [
        "boosting.members.0.model is a, available: weak-0",
        "boosting.members.1.model is b, available: weak-0",
        "student.objective soft needs labeling.soft_top_k of at least 1",
    ]
    assert mistakes(data__split={"difficulty_from": "column"}, data__hard_source={"kind": "files", "paths": ["a"]}) == [
        "data.hard_source is only read in split.mode cross_source, not difficulty",
        "data.split.difficulty_from column needs source.columns.difficulty",
    ]
    assert len(mistakes(evaluation__systems=["a", "b"])) == 2


def test_a_lora_rank_for_a_base_without_lora_is_a_mistake() -> None:
    assert mistakes(boosting__members=[{"lora_rank": 4}]) == [
        "boosting.members.0.lora_rank is 4, but weak-0 has no lora"
    ]
    weak = [{"base": "x", "lora": {}}]
    assert (
        parse_config(tree(models__weak=weak, boosting__members=[{"lora_rank": 4}])).boosting.members[0].lora_rank == 4
    )


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(value: float) -> None:
    assert mistakes(boosting__weight_clip=value)[0].startswith("boosting.weight_clip: input should be a finite number")


def test_no_systems_at_all_is_a_mistake() -> None:
    assert mistakes(evaluation__systems=[])[0].startswith("evaluation.systems: list should have at least 1 item")


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "a: {b: 1, b: 2}\n"])
def test_a_key_that_stands_twice_is_an_error(write: Write, text: str) -> None:
    with pytest.raises(ConfigError, match=r"found the key [ab] twice(.|\n)*config\.yaml.*, line \d"):
        load_config(write(text))


def test_a_merge_key_may_be_overridden(write: Write) -> None:
    text = yaml.safe_dump(tree()) + "expert: &recipe {epochs: 2}\nstudent: {<<: *recipe, batch_size: 8, epochs: 3}\n"
    assert load_config(write(text)).student.epochs == 3


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.yaml is not UTF-8 text: byte 6 cannot be read"):
        load_config(path)


@pytest.mark.parametrize("override", ["boosting..rounds=3", "boosting.=3", ".boosting=3"])
def test_a_set_with_an_empty_part_is_refused(write: Write, override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected dotted\.key=value"):
        load_config(write(tree()), [override])


def test_an_index_in_another_script_is_no_index(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"models\.weak\.² does not exist"):
        load_config(write(tree()), ["models.weak.².base=x"])


@pytest.mark.parametrize(
    ("ensemble", "said"),
    [
        (
            {"weights": "stacked", "combine": "log_probability"},
            "ensemble.weights stacked are fitted for combine probability, not for log_probability",
        ),
        ({"weights": "stacked", "combine": "vote"}, "ensemble.weights stacked are fitted for combine probability, not"),
        (
            {"calibration": "temperature", "combine": "vote"},
            "ensemble.calibration temperature changes nothing under combine vote",
        ),
    ],
)
def test_votes_that_cannot_be_fitted_to_a_rule_are_a_mistake(ensemble: dict[str, Any], said: str) -> None:
    (line,) = mistakes(ensemble=ensemble)
    assert line.startswith(said)


def test_votes_are_fitted_on_half_of_at_least_two_examples() -> None:
    (line,) = mistakes(ensemble__weights="stacked", data__sizes={"easy_validation": 1})
    assert line.endswith("data.sizes.easy_validation must be at least 2")
    assert parse_config(tree(ensemble__weights="uniform", data__sizes={"easy_validation": 1})).ensemble.fitted is False

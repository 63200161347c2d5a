"""The table of systems refers to itself only, and says what configs, reports and studies rely on."""

from ensemw2s.config.systems import ALL_SYSTEMS, GENERATIONS, SYSTEMS, TABLE


def test_every_system_that_an_entry_refers_to_is_in_the_table() -> None:
    for system in TABLE.values():
        referred = {*system.rivals, *([system.labels_by] if system.labels_by else [])}
        assert referred <= TABLE.keys() - {system.name}, system.name


def test_only_students_of_pseudo_labels_have_someone_who_labels() -> None:
    for system in TABLE.values():
        assert (system.labels_by is not None) == (system.learns_from == "pseudo"), system.name
        assert (system.learns_from is not None) == system.is_student, system.name


def test_no_two_systems_read_the_same() -> None:
    for field in ("label", "in_a_sentence"):
        assert len({getattr(system, field) for system in TABLE.values()}) == len(TABLE)


def test_a_report_ends_with_the_ceiling_and_the_last_generation_is_not_compared_unless_there_are_several() -> None:
    assert ALL_SYSTEMS[-1] == "student_ceiling"
    assert GENERATIONS in set(ALL_SYSTEMS) - set(SYSTEMS)


def test_whatever_the_ensemble_must_beat_is_in_every_study_but_for_what_is_on_request() -> None:
    needed = {name for system in TABLE.values() if not system.is_student for name in system.claims_over}
    assert needed - {"bagging"} == {name for name in needed if TABLE[name].in_every_study}
    assert needed >= {"base_ensemble", "deep_ensemble", "expert_single", "expert_compute_matched"}


def test_a_run_compares_every_fair_rival_and_its_student_by_default() -> None:
    rivals = {"base_ensemble", "deep_ensemble", "expert_single", "expert_compute_matched"}
    students = {"student_easy_only", "student_base_ensemble", "student_deep_ensemble", "student_single"}
    assert rivals | students <= set(SYSTEMS)
    assert not {"bagging", "student_bagging"} & set(SYSTEMS)
    assert students <= set(TABLE["student_ensemw2s"].claims_over)

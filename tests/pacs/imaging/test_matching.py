"""Matching rules of PS3.4 C.2.2.2 and K.6, as conditions, as SQL fragments and as Q."""

from datetime import date, datetime, time

import pytest
from pydicom.dataset import Dataset

from pacs.matching import (
    EVERYTHING,
    NOTHING,
    TABLES,
    AllOf,
    AnyOf,
    BadKey,
    Compare,
    Level,
    Matching,
    Op,
    as_q,
    as_sql,
    attribute,
    keys_of,
    like_pattern,
    match_key,
    name_key,
    name_keys,
    period_bounds,
    plan,
    table,
)

STUDY = TABLES[Level.STUDY]
PATIENT_ID = STUDY[0x00100020]
NAME = STUDY[0x00100010]
STUDY_DATE = STUDY[0x00080020]
STUDY_TIME = STUDY[0x00080030]
BIRTH_DATE = STUDY[0x00100030]
MODALITIES = STUDY[0x00080061]
UID = STUDY[0x0020000D]
MODALITY = TABLES[Level.SERIES][0x00080060]


@pytest.mark.parametrize("key", ["", "   ", "*", "**", "\0"])
def test_an_empty_key_or_only_stars_match_everything(key: str) -> None:
    assert match_key(PATIENT_ID, key) is None
    assert match_key(NAME, key) is None


def test_only_star_and_question_mark_are_wildcards() -> None:
    assert like_pattern(r"100%_[a].\*?") == r"100\%\_[a].\\%_"
    assert match_key(PATIENT_ID, "100%") == Compare("study.patient_id", Op.EQ, "100%")
    assert match_key(PATIENT_ID, "A_1*") == Compare("study.patient_id", Op.LIKE, r"A\_1%")


def test_outer_spaces_of_a_key_are_not_significant() -> None:
    assert match_key(PATIENT_ID, " P1 ") == Compare("study.patient_id", Op.EQ, "P1")


def test_a_single_value_key_takes_a_star_literally() -> None:
    station = attribute("ScheduledStationAETitle", Level.STEP, "station", Matching.SINGLE)
    assert match_key(station, "CT*") == Compare("station", Op.EQ, "CT*")


def test_a_list_of_uids_matches_any_of_them() -> None:
    assert match_key(UID, r"1.2\1.3") == Compare("study.study_instance_uid", Op.IN, ["1.2", "1.3"])
    assert match_key(UID, "1.2\0") == Compare("study.study_instance_uid", Op.EQ, "1.2")


def test_a_modality_in_lower_case_is_corrected_unless_strict() -> None:
    assert match_key(MODALITIES, r"ct\MR") == Compare("study.modalities_in_study", Op.OVERLAP, ["CT", "MR"])
    with pytest.raises(BadKey) as refused:
        match_key(MODALITY, "ct", strict=True)
    assert refused.value.tag == 0x00080060


class TestNames:
    def test_the_normal_form_ignores_case_accents_and_trailing_components(self) -> None:
        assert name_key("MÜLLER ^ John^^ ") == "muller^john"
        assert name_key("Straße^Ångström") == "strasse^angstrom"

    def test_marks_that_make_another_letter_stay(self) -> None:
        assert name_key("Йод") != name_key("Иод")
        assert name_key("が") != name_key("か")

    def test_composed_and_decomposed_forms_are_equal(self) -> None:
        assert name_key("e\u0301") == name_key("\u00e9")
        assert name_key("か\u3099") == name_key("が")

    def test_three_groups_have_three_keys(self) -> None:
        assert name_keys("Yamada^Tarou=山田^太郎=やまだ^たろう") == (
            "yamada^tarou",
            "山田^太郎",
            "やまだ^たろう",
        )
        assert name_keys("Doe^J") == ("doe^j", "", "")

    def test_a_key_of_one_group_looks_in_every_group(self) -> None:
        condition = match_key(NAME, "山*")
        assert isinstance(condition, AnyOf)
        assert [part.column for part in condition.parts if isinstance(part, Compare)] == [
            "study.patient_name_search",
            "study.patient_name_ideographic_search",
            "study.patient_name_phonetic_search",
        ]

    def test_a_key_of_several_groups_matches_each_in_its_own(self) -> None:
        assert match_key(NAME, "=山田*=やまだ*") == AllOf(
            (
                Compare("study.patient_name_ideographic_search", Op.LIKE, "山田%"),
                Compare("study.patient_name_phonetic_search", Op.LIKE, "やまだ%"),
            )
        )

    def test_star_after_a_caret_also_finds_the_name_without_that_component(self) -> None:
        one = attribute("PatientName", Level.STEP, "n", Matching.NAME)
        assert match_key(one, "DOE^*") == AnyOf(
            (AnyOf((Compare("n", Op.LIKE, "doe^%"), Compare("n", Op.EQ, "doe"))),)
        )

    def test_a_fuzzy_key_finds_its_words_anywhere(self) -> None:
        one = attribute("PatientName", Level.STEP, "n", Matching.NAME)
        assert match_key(one, "john doe", fuzzy=True) == AnyOf(
            (AllOf((Compare("n", Op.LIKE, "%john%"), Compare("n", Op.LIKE, "%doe%"))),)
        )


class TestDatesAndTimes:
    def test_a_range_includes_both_ends(self) -> None:
        assert match_key(STUDY_DATE, "20260310-20260312") == AllOf(
            (
                Compare("study.study_date", Op.GE, date(2026, 3, 10)),
                Compare("study.study_date", Op.LE, date(2026, 3, 12)),
            )
        )

    def test_an_open_range_has_one_bound(self) -> None:
        assert match_key(STUDY_DATE, "-20260312") == Compare("study.study_date", Op.LE, date(2026, 3, 12))
        assert match_key(STUDY_DATE, "20260312-") == Compare("study.study_date", Op.GE, date(2026, 3, 12))

    def test_times_are_compared_by_value(self) -> None:
        assert match_key(STUDY_TIME, "1015") == match_key(STUDY_TIME, "101500.000")

    def test_a_truncated_upper_bound_reaches_the_end_of_its_unit(self) -> None:
        assert match_key(STUDY_TIME, "-10") == Compare("study.study_time", Op.LE, time(10, 59, 59, 999999))

    def test_a_birth_date_before_a_bound_is_never_an_unknown_one(self) -> None:
        assert match_key(BIRTH_DATE, "-19500101") == AllOf(
            (
                Compare("study.patient_birth_date", Op.GE, "0"),
                Compare("study.patient_birth_date", Op.LE, "19500101"),
            )
        )

    @pytest.mark.parametrize("key", ["2026031", "20261301", "20260310-20260312-", "-", "abcdefgh", "2026*"])
    def test_a_malformed_date_is_refused_without_repeating_it(self, key: str) -> None:
        with pytest.raises(BadKey) as refused:
            match_key(STUDY_DATE, key)
        assert refused.value.tag == 0x00080020
        assert key.strip("-") == "" or key not in str(refused.value)

    def test_dates_of_older_standards_are_read_unless_strict(self) -> None:
        assert match_key(STUDY_DATE, "2026.03.10") == Compare("study.study_date", Op.EQ, date(2026, 3, 10))
        assert match_key(STUDY_DATE, "2026-03-10") == Compare("study.study_date", Op.EQ, date(2026, 3, 10))
        with pytest.raises(BadKey):
            match_key(STUDY_DATE, "2026.03.10", strict=True)

    def test_two_ranges_make_one_period(self) -> None:
        assert period_bounds("20260310-20260312", "2200-0600") == (
            datetime(2026, 3, 10, 22, 0),
            datetime(2026, 3, 12, 6, 0, 59, 999999),
        )
        assert period_bounds("20260310-", "2200-") == (datetime(2026, 3, 10, 22, 0), None)
        assert period_bounds("-20260312", "-06") == (None, datetime(2026, 3, 12, 6, 59, 59, 999999))

    def test_an_upper_date_without_an_upper_time_takes_its_whole_day(self) -> None:
        where = plan(STUDY, {0x00080020: "20260310-20260312", 0x00080030: "0800-"}).where
        sql, params = as_sql(where, {"study": "s"})
        assert '"s"."study_date" <= %s' in sql
        assert params[-1] == date(2026, 3, 12)

    def test_ranges_are_separate_when_combination_was_not_negotiated(self) -> None:
        keys = {0x00080020: "20260310-20260312", 0x00080030: "0800-0900"}
        sql, _ = as_sql(plan(STUDY, keys, combined=False).where)
        assert " OR " not in sql


class TestPlans:
    def test_every_key_is_a_return_key(self) -> None:
        result = plan(STUDY, {0x00100010: "DOE*", 0x00100020: "", 0x00080020: "20260310-", 0x00080030: "08-"})
        assert sorted(result.requested) == [0x00080020, 0x00080030, 0x00100010, 0x00100020]

    def test_a_key_that_the_table_lacks_is_named_and_not_matched(self) -> None:
        result = plan(STUDY, {0x00101010: "042Y", 0x00080052: "STUDY", 0x00104000: ""})
        assert result.where == EVERYTHING
        assert result.unsupported == [0x00101010, 0x00080052]
        assert result.unknown == [0x00101010, 0x00080052, 0x00104000]

    def test_the_item_of_a_sequence_is_matched_by_its_own_keys(self) -> None:
        result = plan(STUDY, {0x00080051: [{0x00400031: "MAIN"}]})
        assert result.where == Compare("study.issuer_of_accession_number", Op.EQ, "MAIN")
        assert result.requested_items == {0x00080051: [0x00400031]}

    def test_an_empty_sequence_is_universal(self) -> None:
        assert plan(STUDY, {0x00080051: []}).where == EVERYTHING
        assert plan(STUDY, {0x00080051: [{}]}).where == EVERYTHING

    def test_two_items_are_refused_when_strict(self) -> None:
        items = [{0x00400031: "A"}, {0x00400031: "B"}]
        assert plan(STUDY, {0x00080051: items}).repaired == [0x00080051]
        with pytest.raises(BadKey):
            plan(STUDY, {0x00080051: items}, strict=True)

    def test_a_key_of_absurd_length_is_refused(self) -> None:
        with pytest.raises(BadKey):
            plan(STUDY, {0x00100010: "*a" * 5000})

    def test_an_identifier_of_pydicom_gives_its_keys(self) -> None:
        ds = Dataset()
        ds.PatientName = "Doe^J*"
        ds.StudyInstanceUID = ["1.2", "1.3"]
        ds.StudyDate = "20260101-20260102"
        item = Dataset()
        item.LocalNamespaceEntityID = "MAIN"
        ds.IssuerOfAccessionNumberSequence = [item]
        assert keys_of(ds) == {
            0x00080020: "20260101-20260102",
            0x00080051: [{0x00400031: "MAIN"}],
            0x00100010: "Doe^J*",
            0x0020000D: r"1.2\1.3",
        }


class TestRendering:
    def test_values_are_parameters_and_columns_come_from_the_table(self) -> None:
        hostile = "x'; DROP TABLE study; --*"
        sql, params = as_sql(plan(STUDY, {0x00100020: hostile}).where, {"study": "s"})
        assert sql == '"s"."patient_id" LIKE %s'
        assert params == ["x'; DROP TABLE study; --%"]

    def test_everything_and_nothing_have_sql(self) -> None:
        assert as_sql(EVERYTHING) == ("TRUE", [])
        assert as_sql(NOTHING) == ("FALSE", [])

    def test_columns_without_a_model_are_written_alone(self) -> None:
        rows = table(attribute("PatientID", Level.STEP, "patient_id", Matching.WILDCARD))
        assert as_sql(plan(rows, {0x00100020: "7"}).where)[0] == '"patient_id" = %s'

    def test_a_q_follows_the_paths_of_its_model(self) -> None:
        q = as_q(plan(STUDY, {0x00100020: "A*"}).where, {"study": "series__study__"})
        assert "series__study__patient_id__like" in str(q)

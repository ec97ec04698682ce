"""The columns of patients are recognised by name, and those of other facts are not."""

from __future__ import annotations

import pytest

from raysim.data.patient_columns import patient_columns


@pytest.mark.parametrize(
    "name",
    [
        *(
            "patient",
            "Patient",
            "patient_id",
            "pt_no",
            "RID",
            "record_id",
            "NHS number",
            "pseudonym",
            "donor_id",
            "individual",
            "PatientID",
            "PATIENT ID",
            "patientId",
            "Patient-Nr",
            "patient.no",
            "pat_id",
        ),
        *("subject", "subject_id", "SubjectID", "subj_id", "USUBJID", "sub_id", "participant_id", "ParticipantNumber"),
        *("case", "case_id", "CaseID", "person_id", "group", "MRN", "pid", "pat_id", "eid", "anon_patient_id"),
        *("patient_id_hash", "PatientID_anon", "patient id (hash)", "anonymized_patient", "Patientennummer"),
    ],
)
def test_columns_of_patients(name: str) -> None:
    assert patient_columns(["site", name, "age"]) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "patient_age",
        "pt",
        "donor",
        "pseudo",
        "subject_weight",
        "casual",
        "cases",
        "id",
        "age",
        "image_id",
        "patients_per_year",
        "patient_identity",
        "anonymised_patient_age",
        "groups",
        "no",
        "number",
    ],
)
def test_other_columns(name: str) -> None:
    assert patient_columns([name]) == []


def test_a_person_takes_precedence_over_a_case_and_a_group() -> None:
    assert patient_columns(["group", "case", "subject_id", "PatientID", "patient"]) == [
        "patient",
        "PatientID",
        "subject_id",
        "case",
        "group",
    ]

"""Recognises the columns of a table that identify patients, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from raysim.core.suggestions import squash

# The first kind of column that a table has identifies the patient.
PATIENT_COLUMNS = ("patient", "subject", "participant", "person", "case", "group")
SHORT_FORMS = {
    **dict.fromkeys(("patienten", "pat", "pid", "ptid", "mrn", "medicalrecordnumber"), "patient"),
    **dict.fromkeys(("ptno", "ptnr", "nhsno", "nhsnumber", "ssn", "hospitalno", "hospitalnumber"), "patient"),
    **dict.fromkeys(("recordid", "pseudonym", "pseudoid", "anonid"), "patient"),
    **dict.fromkeys(("subj", "sub", "usubj", "eid", "rid", "individual"), "subject"),
    **dict.fromkeys(("donorid", "volunteerid", "animalid", "mouseid"), "subject"),  # `donor` may be a feature
}
IDENTIFIER = re.compile(r"(uid|id|ids|identifier|no|nr|num|number|nummer|code|key|name|pseudonym|hash)$")
LEADING = re.compile(  # patient_id_hash, anonymised_patient
    r"(?:(?:anon|pseudo|hashed|deidentified)[a-z]*[\s_.-]+(?=[a-z]+$)|(?=[a-z]+[\s_.-]*(?:uid|id|identifier)[^a-z]))"
    r"(patient|subject|participant|person)",
    re.IGNORECASE,
)
OWNER = re.compile(r"(?:^|^.*[\s_.-])(patient|subject|participant|person)$", re.IGNORECASE)


def patient_columns(names: Iterable[str]) -> list[str]:
    """The columns that identify patients, such as `patient`, `PatientID` or `subject_id`; the one to use first."""
    kinds = {name: kind for name in names if (kind := _kind(str(name))) is not None}
    return sorted(kinds, key=lambda name: (PATIENT_COLUMNS.index(kinds[name]), name != kinds[name], name))


def patients_of(table: pd.DataFrame) -> list[str | None]:
    """The patient of each row; None for a row without a patient."""
    columns = patient_columns(map(str, table.columns))
    if not columns:
        return [None] * len(table)
    return [None if pd.isna(cell) else str(cell) for cell in table[columns[0]]]


def _kind(name: str) -> str | None:
    """The entry of PATIENT_COLUMNS that a column is; None for a column that does not identify patients."""
    squashed = re.sub(r"[\s.#]", "", squash(name))
    without_suffix = IDENTIFIER.sub("", squashed)
    for form in (squashed, without_suffix):
        form = SHORT_FORMS.get(form, form)
        if form in PATIENT_COLUMNS:
            return form
    if leading := LEADING.match(name):
        return leading[1].lower()
    # anonymised_patient_id, but not patients_at_hospital_id
    owner = OWNER.match(re.sub(r"[\s_.-]*(uid|id|identifier)$", "", name, flags=re.IGNORECASE))
    return owner[1].lower() if owner and without_suffix != squashed else None

"""What a DICOM object says of itself, as far as it may leave: an allow-list of attributes, and keyed identities."""

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pneumobatch.identity import SITE_KEY, keyed_hash

if TYPE_CHECKING:
    from pydicom import Dataset

_VIEWS = {"PA", "AP", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAT", "LATERAL"}
_VIEW_CODES = {
    "R-10206": "AP", "399348003": "AP",
    "R-10214": "PA", "R-40888": "PA", "272479007": "PA",
    "R-102CD": "LATERAL", "399067008": "LATERAL",
    "R-10236": "LL", "399173006": "LL",
    "R-10232": "RL", "399198007": "RL",
    "R-10202": "", "399033003": "",
}  # fmt: skip
"""View codes of PS3.16 CID 4010, as SNOMED RT and CT have them → view position; frontal does not say which of two."""
_REGION_CODES = {
    "T-D3000": "CHEST",
    "51185008": "CHEST",
    "816094009": "CHEST",
    "T-D3200": "THORAX",
    "43799004": "THORAX",
}
"""Chest and thoracic cavity, as SNOMED RT and CT have them (PS3.16 CID 4031) → body part."""
OTHER = "OTHER"
"""A view or a body part by a code that is none of these."""
_DAYS = {"Y": 365.25, "M": 30.4375, "W": 7.0, "D": 1.0}
_DATES = ("PatientBirthDate", "StudyDate")
_IDENTITIES = {
    "patient": "PatientID",
    "accession": "AccessionNumber",
    "study": "StudyInstanceUID",
    "instance": "SOPInstanceUID",
}


def code(dataset: "Dataset", keyword: str) -> str:
    """First value of an element as an upper-case code, "" where it is absent."""
    value = dataset.get(keyword)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else ""
    return " ".join(str(value if value is not None else "").upper().split())


def number(dataset: "Dataset", keyword: str) -> float | None:
    """First value of a numeric element, None where it is absent or empty."""
    text = code(dataset, keyword)
    return float(text) if text else None


def view(dataset: "Dataset") -> str:
    """View position; where it is absent, what the view's code or the rows' direction says.

    Some archives put it into PatientPosition, whose own terms (HFS …) name no projection. Rows of a lateral film run to
    the patient's front or back (PatientOrientation A or P); those of a frontal one run to a side.
    """
    position = code(dataset, "PatientPosition")
    if stated := code(dataset, "ViewPosition") or (position if position in _VIEWS else ""):
        return stated
    if coded := _coded(dataset, "ViewCodeSequence", _VIEW_CODES):
        return coded
    return "LATERAL" if re.fullmatch("[AP][HFLR]{0,2}", code(dataset, "PatientOrientation")) else ""


def body_part(dataset: "Dataset") -> str:
    """Body part examined; where it is absent, what the region's code says."""
    return code(dataset, "BodyPartExamined") or _coded(dataset, "AnatomicRegionSequence", _REGION_CODES)


def _coded(dataset: "Dataset", keyword: str, known: dict[str, str]) -> str:
    """What the first code of a sequence stands for, "" where there is none.

    The coding scheme is not asked: SNOMED has had four designators, and no two of these values collide.
    """
    items = dataset.get(keyword)
    if not items:
        return ""
    value = code(items[0], "CodeValue") or code(items[0], "LongCodeValue")
    return known.get(value, OTHER) if value else ""


def allowed(dataset: "Dataset") -> dict[str, str | int]:
    """The allow-list, each value in a form that cannot carry free text (a manufacturer's name apart)."""
    codes = (
        ("modality", code(dataset, "Modality"), r"[A-Z]{2,16}"),
        ("view", view(dataset), r"[A-Z]{1,16}"),
        ("sex", code(dataset, "PatientSex"), r"[MFO]"),
        ("photometric", code(dataset, "PhotometricInterpretation"), r"[A-Z0-9_ ]{1,16}"),
    )
    found: dict[str, str | int] = {name: value for name, value, form in codes if re.fullmatch(form, value)}
    if (years := _years(dataset)) is not None:
        found["age_years"] = min(years, 90)
    if month := re.fullmatch(r"(\d{4})\.?(0[1-9]|1[0-2])\.?\d\d", code(dataset, "StudyDate")):
        found["study_month"] = f"{month[1]}-{month[2]}"
    if maker := " ".join(
        "".join(c if c.isprintable() else " " for c in str(dataset.get("Manufacturer") or "")).split()
    ):
        found["manufacturer"] = maker[:64]
    return found


def _years(dataset: "Dataset") -> int | None:
    """Whole years by PatientAge; where it is absent, by the date of birth at the study's: many objects have no age."""
    if stated := code(dataset, "PatientAge"):
        age = re.fullmatch(r"0*(\d{1,3}(?:\.\d*)?) ?([YMWD]?)", stated)
        return age and int(float(age[1]) * _DAYS[age[2] or "Y"] / _DAYS["Y"])
    born, studied = (re.fullmatch(r"(\d{4})\.?(\d\d)\.?(\d\d)", code(dataset, name)) for name in _DATES)
    if not (born and studied):
        return None
    years = int(studied[1]) - int(born[1]) - (studied.groups()[1:] < born.groups()[1:])
    return years if 0 <= years <= 130 else None


def identities(dataset: "Dataset") -> dict[str, str]:
    """Keyed hashes of patient, accession, study and instance, as far as they are stated; none without the site's key.

    The value is hashed as text, without spaces at its ends, after the kind of identifier: `patient:12345`.
    """
    if not os.environ.get(SITE_KEY):
        return {}
    found = {}
    for name, keyword in _IDENTITIES.items():
        value = dataset.get(keyword)
        if isinstance(value, str) and (text := value.strip()):
            found[name] = keyed_hash(f"{name}:{text}")
    return found

"""The classes of the two published data sets: proper names, grouping, folder names, cell counts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Grouping = Literal["normal", "benign", "abnormal"]


@dataclass(frozen=True)
class CellClass:
    """A class of cells: its proper name, its grouping if one is published, and its folders' names."""

    name: str
    grouping: Grouping | None
    aliases: tuple[str, ...] = ()


# Plissiti et al., "SIPAKMED: a new dataset for feature and image based classification of normal and
# pathological cervical cells in Pap smear images", IEEE ICIP 2018.
SIPAKMED_CLASSES = (
    CellClass("Dyskeratotic", "abnormal", ("im_Dyskeratotic",)),
    CellClass("Koilocytotic", "abnormal", ("im_Koilocytotic",)),
    CellClass("Metaplastic", "benign", ("im_Metaplastic",)),
    CellClass("Parabasal", "normal", ("im_Parabasal",)),
    CellClass("Superficial-Intermediate", "normal", ("im_Superficial-Intermediate",)),
)

# Jantzen, Norup, Dounias, Bjerregaard, "Pap-smear benchmark data for pattern classification", NiSIS
# 2005. Its names in full are superficial and intermediate squamous epithelial, columnar epithelial;
# mild, moderate and severe squamous non-keratinizing dysplasia; squamous cell carcinoma in situ.
HERLEV_CLASSES = (
    CellClass("Superficial squamous", "normal", ("normal_superficiel", "normal_superficial")),
    CellClass("Intermediate squamous", "normal", ("normal_intermediate",)),
    CellClass("Columnar", "normal", ("normal_columnar",)),
    CellClass("Mild dysplasia", "abnormal", ("light_dysplastic", "mild_dysplastic", "light_dysplasia")),
    CellClass("Moderate dysplasia", "abnormal", ("moderate_dysplastic",)),
    CellClass("Severe dysplasia", "abnormal", ("severe_dysplastic",)),
    CellClass("Carcinoma in situ", "abnormal", ("carcinoma_in_situ",)),
)

KNOWN_CLASSES = {"SIPaKMeD": SIPAKMED_CLASSES, "Herlev": HERLEV_CLASSES}

CITATIONS = {
    "SIPaKMeD": (
        "M. E. Plissiti, P. Dimitrakopoulos, G. Sfikas, C. Nikou, O. Krikoni, A. Charchanti: SIPAKMED: a new "
        "dataset for feature and image based classification of normal and pathological cervical cells in "
        "Pap smear images, IEEE ICIP 2018"
    ),
    "Herlev": (
        "J. Jantzen, J. Norup, G. Dounias, B. Bjerregaard: Pap-smear benchmark data for pattern "
        "classification, NiSIS 2005"
    ),
}

PUBLISHED_CELLS = {
    "SIPaKMeD": {
        "Dyskeratotic": 813,
        "Koilocytotic": 825,
        "Metaplastic": 793,
        "Parabasal": 787,
        "Superficial-Intermediate": 831,
    },
    "Herlev": {
        "Superficial squamous": 74,
        "Intermediate squamous": 70,
        "Columnar": 98,
        "Mild dysplasia": 182,
        "Moderate dysplasia": 146,
        "Severe dysplasia": 197,
        "Carcinoma in situ": 150,
    },
}
"""Cells of each class in the complete data sets: 4,049 of SIPaKMeD, 917 of Herlev."""


def known_class(data_set: str, name: str) -> CellClass | None:
    """Return the class of "SIPaKMeD" or "Herlev" that a folder or label names, in any case and with any
    separators, or None.

    Example:
        >>> known_class("SIPaKMeD", "im_superficial intermediate").name
        'Superficial-Intermediate'
    """
    return _CLASS_OF_KEY[data_set].get(_key(name))


def proper_names(names: Iterable[str]) -> tuple[str, dict[str, str]] | None:
    """Return the data set to which every name belongs, and each name's proper class name; else None."""
    names = list(names)
    for data_set in KNOWN_CLASSES:
        found = {name: known_class(data_set, name) for name in names}
        proper = {name: cell_class.name for name, cell_class in found.items() if cell_class is not None}
        if names and len(proper) == len(found):
            return data_set, proper
    return None


def grouping_of(class_names: Iterable[str]) -> dict[str, Grouping | None]:
    """Return for each class whether its data set's authors count it as normal, benign or abnormal.

    None stands for a class of neither SIPaKMeD nor Herlev: it is not guessed from the name.
    """
    groupings: dict[str, Grouping | None] = {}
    for name in class_names:
        found = (known_class(data_set, name) for data_set in KNOWN_CLASSES)
        groupings[name] = next((cell_class.grouping for cell_class in found if cell_class), None)
    return groupings


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_CLASS_OF_KEY = {
    data_set: {_key(name): one for one in classes for name in (one.name, *one.aliases)}
    for data_set, classes in KNOWN_CLASSES.items()
}

"""What each known class looks like and means, in short, for people who look at an answer.

SIPaKMeD's after M. E. Plissiti et al., IEEE ICIP 2018, section 2; Herlev's after J. Jantzen et al., NiSIS
2005. What is reported under which name in gynaecological cytology: R. Nayar, D. C. Wilbur (eds.), "The
Bethesda System for Reporting Cervical Cytology", 3rd ed., Springer 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

from cervicyte.datasets.classes import proper_names


@dataclass(frozen=True)
class ClassGuide:
    """How cells of a class look, and what finding them means."""

    looks: str
    means: str


SIPAKMED_GUIDE = {
    "Dyskeratotic": ClassGuide(
        "Bright orange, dense cytoplasm, keratinised too early; dark, often irregular nuclei. Mostly in "
        "thick, three-dimensional clusters, so that a crop often shows parts of neighbours.",
        "Abnormal. A sign of infection with human papillomavirus, often beside koilocytes; the nuclei decide "
        "how serious it is.",
    ),
    "Koilocytotic": ClassGuide(
        "Mature squamous cells with a large, sharply bordered clearing round the nucleus and dense cytoplasm "
        "at the edge. Nuclei enlarged, dark, wrinkled, off centre, often two.",
        "Abnormal. The hallmark of infection with human papillomavirus; in the Bethesda System part of the "
        "low-grade lesion (LSIL).",
    ),
    "Metaplastic": ClassGuide(
        "Round to oval, of the size of parabasal cells, with dense, well bordered cytoplasm, sometimes with "
        "a vacuole; one round nucleus, often off centre.",
        "Benign. Cells of the transformation zone, where squamous replaces glandular epithelium, and where "
        "lesions begin.",
    ),
    "Parabasal": ClassGuide(
        "Small, round, immature squamous cells; blue-green cytoplasm; one large, round nucleus that fills "
        "much of the cell.",
        "Normal. Usual where oestrogen is low, as after menopause or birth. Hard to tell from metaplastic "
        "cells.",
    ),
    "Superficial-Intermediate": ClassGuide(
        "Large, flat, polygonal cells with thin pink or blue-green cytoplasm; a small nucleus, shrunken and "
        "dark (superficial) or round and finely textured (intermediate).",
        "Normal. Mature squamous cells, most of those in a normal smear.",
    ),
}

HERLEV_GUIDE = {
    "Superficial squamous": ClassGuide("Flat, polygonal; a very small, dark nucleus.", "Normal."),
    "Intermediate squamous": ClassGuide("Flat, polygonal; a small, round nucleus.", "Normal."),
    "Columnar": ClassGuide("Column-shaped, nucleus at one end.", "Normal; glandular."),
    "Mild dysplasia": ClassGuide("Enlarged, light nucleus.", "Abnormal; corresponds to LSIL."),
    "Moderate dysplasia": ClassGuide(
        "Large, darker nucleus; darker cytoplasm.", "Abnormal; corresponds to HSIL."
    ),
    "Severe dysplasia": ClassGuide(
        "Large, dark, often irregular nucleus in little, dark cytoplasm.", "Abnormal; corresponds to HSIL."
    ),
    "Carcinoma in situ": ClassGuide(
        "Very large, dark, irregular nucleus in very little cytoplasm.", "Abnormal; corresponds to HSIL."
    ),
}

GUIDES = {"SIPaKMeD": SIPAKMED_GUIDE, "Herlev": HERLEV_GUIDE}


def guide_of(class_names: tuple[str, ...]) -> dict[str, ClassGuide]:
    """Return what is known of each class of a model; nothing if one is of no known data set."""
    known = proper_names(class_names)
    if known is None:
        return {}
    data_set, proper = known
    return {name: GUIDES[data_set][proper[name]] for name in class_names}

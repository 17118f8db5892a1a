"""Every error that Cervicyte raises on purpose, each named for what went wrong.

An error's text is one sentence for the person who reads it: what was wrong, in which file, and what
to do. The command line prints it and exits with status 2; the dashboard shows it beside the input.
"""


def to_install(extra: str | None = None) -> str:
    """Return what to type for the program, or for one of its extras: the project is on no index yet."""
    what = "." if extra is None else f"'.[{extra}]'"
    return f"pip install {what} in the program's folder"


class CervicyteError(Exception):
    """Base of all errors below: something in the input, not in the program, needs mending."""


class ImageError(CervicyteError):
    """An image file could not be used. The text begins with the file's path."""


class ImageNotFound(ImageError):
    """No file lies at the path given."""


class NotAnImage(ImageError):
    """The file is empty, of another kind, or in an image format that is not read here."""


class TruncatedImage(ImageError):
    """The file begins as an image but its data end early or are damaged."""


class OversizedImage(ImageError):
    """The image has more pixels than the stated bound; it was not decoded."""


class DatasetError(CervicyteError):
    """A folder or manifest could not be read as labelled cells."""


class SplitError(CervicyteError):
    """A split file is malformed, does not fit the data, or puts one group on both sides."""


class WeightsError(CervicyteError):
    """Backbone weights are missing, unreadable, or do not fit the network."""


class ModelFileError(CervicyteError):
    """A model file is unreadable, is not a Cervicyte or original checkpoint, or does not fit."""


class CalibrationError(CervicyteError):
    """A calibration is missing, damaged, or of other classes than what it is applied to."""


class FamiliarityError(CervicyteError):
    """What says how unlike the training cells an image is, is damaged or of another network."""


class RecipeError(CervicyteError):
    """A recipe has an unknown key or a value of the wrong type or range."""


class RunFolderError(CervicyteError):
    """A run folder is already in use, finished, or lacks what a command needs."""


class WorkersError(CervicyteError):
    """The workers of another program are not there, or could not go on."""


class ReadingLogError(CervicyteError):
    """A reading log is missing, damaged, of another program, or cannot be written."""


class UsageError(CervicyteError):
    """Options were combined in a way that has no meaning."""

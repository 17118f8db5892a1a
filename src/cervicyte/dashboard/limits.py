"""How much the server takes, before a pixel is decoded, and how long it keeps it."""

from __future__ import annotations

MAX_UPLOAD_MB = 50
"""Bound for one file and for the body of one request to the API, in MiB."""
MAX_UPLOADS_MB = 250
"""Bound for all files that a page sends in one request, which lie on the disk until they are read."""
MAX_UPLOADS_TOGETHER_MB = 1000  # that are on their way from all pages at once
MAX_LYING_MB = 2000  # of uploads that lie on the disk and are not read yet
SECONDS_LYING = 3600
"""That an upload lies there at most, however slowly it is read."""
MAX_QUESTION_MB = 2  # of a page's question; files are sent before it, and it names them
MAX_PIXELS = 20_000_000
"""Bound for one image, height times width; a whole SIPaKMeD field has 3.1 million."""
MAX_EXPLAINED_PIXELS = 5_000_000
"""Bound for one image whose maps are asked for: while they are made, five of its size lie in memory."""
MAX_IMAGES = 32  # in one request
MAX_EXPLAINED_IMAGES = 4  # in one request for maps
MAX_EXPLAINED_AT_ONCE = 48
"""Images of all requests for maps that are not answered yet: maps are made faster than they are written as
pictures, and those of one image may take 24 MB."""
MAX_WAITING = 96  # images of all requests and pages that wait for the network
SECONDS_OF_PATIENCE = 10  # that a page waits for a place among them
MAX_BODIES_MB = 400  # of all requests at once, in memory
MAX_NAME = 200  # characters of an image's name; what is longer is cut
SHOWN_SIDE = 1024  # pixels; larger pictures and maps are given smaller
SECONDS_TO_RETRY = 2  # what a request that finds no room is told
MAX_SESSIONS = 1000  # pages whose cells are kept
MAX_SESSIONS_MB = 1500  # what their files, pictures and models take of the memory together
MAX_ADAPTED_PIXELS = 150_000_000  # of all images that a model is adapted to, decoded at once
MAX_OVERLAID_LISTS = 8
"""Lists whose overlays are made at once, a cell of each in turn."""
MAX_OVERLAYS_MB = 2000  # that the overlays of all lists take of the disk together
SECONDS_KEPT = 4 * 3600
"""That a page's cells are kept after the last thing that was asked."""
SECONDS_AFTER_LEAVING = 15 * 60
"""That they are kept after the page was left, so that it may be loaded again."""
HOW_LONG = (
    f"until {SECONDS_AFTER_LEAVING // 60} minutes after this page was left, or {SECONDS_KEPT // 3600} hours "
    "after you last did something on it"
)
"""How long a page's cells are kept, in words for its reader."""

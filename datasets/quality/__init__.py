"""The databases of image quality: one per file. This table lists them all.

Each name stands for a loader, ``load(path, *, data) -> QualityDatabase`` (see ``oodbench.datasets.quality.database``), for
built-in and third-party databases alike. ``path`` is what follows the colon of ``folder:PATH`` and ``scores:FILE``, and empty
for other databases; ``data`` holds the data roots that are searched.
"""

from oodbench.registry import Entry

TABLE = {
    "photos": Entry(
        "oodbench.datasets.quality.photos:load",
        "Tiles of two photographs under 8 corruptions at 5 levels, embedded; the level takes the place of a score",
        "https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_sample_images.html",
    ),
    "live": Entry(
        "oodbench.datasets.quality.live:load",
        "LIVE release 2: 779 images, 5 distortions of 29 references",
        "https://live.ece.utexas.edu/research/quality/subjective.htm",
    ),
    "tid2013": Entry(
        "oodbench.datasets.quality.tid2013:load",
        "TID2013: 3,000 images, 24 distortions of 25 references",
        "https://www.ponomarenko.info/tid2013.htm",
    ),
    "multi": Entry(
        "oodbench.datasets.quality.multi:load",
        "LIVE multiply distorted (MULTI): 450 images, blur with JPEG or noise, of 15 references",
        "https://live.ece.utexas.edu/research/quality/live_multidistortedimage.html",
    ),
    "kadid10k": Entry(
        "oodbench.datasets.quality.kadid10k:load",
        "KADID-10k: 10,125 images, 25 distortions of 81 references",
        "https://database.mmsp-kn.de/kadid-10k-database.html",
    ),
    "csiq": Entry(
        "oodbench.datasets.quality.csiq:load",
        "CSIQ: 866 images, 6 distortions of 30 references",
        "https://s2.smu.edu/~eclarson/csiq.html",
    ),
    "folder": Entry("oodbench.datasets.quality.folder:load", "folder:PATH, any folder of images with a table scores.csv"),
    "scores": Entry(
        "oodbench.datasets.quality.scores:load", "scores:FILE, a table of scores and of metrics' values, without images"
    ),
}

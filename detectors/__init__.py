"""The detectors: one method, one paper, one file. This table is their table of contents."""

from oodbench.registry import Entry

TABLE = {
    "msp": Entry(
        "oodbench.detectors.msp:MSP", "One minus the largest softmax probability", "Hendrycks & Gimpel 2017", "nothing"
    ),
}

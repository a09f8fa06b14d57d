"""Protocols: how many images are labelled in each round, and how the network of a round is trained."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """The rounds of active learning.

    Attributes:
        start: number of images that are labelled before the first round, drawn at random.
        query: number of images that each query adds.
        rounds: number of queries. A network is trained before each query and after the last one: ``rounds + 1`` networks.
        lr: learning rate of Adam.
        batch_size: number of images per batch of training.
        clamp: bound of the magnitude of each entry of a gradient, or None.
        until: training ends once the accuracy on the labelled images, measured during an epoch, reaches this value.
        restart_every, restart_below: every ``restart_every`` epochs, except after the last one, the weights are drawn anew if
            the accuracy is below ``restart_below``.
        most_epochs: training ends after this number of epochs, whatever the accuracy. The authors' code has no such limit;
            records hold it.
    """

    start: int
    query: int
    rounds: int
    lr: float
    batch_size: int
    clamp: float | None
    until: float
    restart_every: int
    restart_below: float
    most_epochs: int = 1000

    def override(self, **changes: Any) -> "Protocol":
        """The protocol with those of the changes that are not None."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def labelled(self, round: int) -> int:
        """Number of labelled images in this round, counted from 0."""
        return self.start + round * self.query


# As the code of the authors has them, each without augmentation: GauSS (Benkert et al., arXiv 2302.12018), with 3 queries up to
# 4,000 images, and BADGE (arXiv 1906.03671), whose number of queries is not fixed: 10 here.
PROTOCOLS = {
    "gauss": Protocol(128, 1024, 3, 1e-3, 128, None, 0.92, 80, 0.2),
    "badge": Protocol(100, 100, 10, 1e-4, 128, 0.1, 0.99, 1000, 0.2, most_epochs=2000),
}

"""The built-in strategies of active learning by name; each is imported when it is used."""

from oodbench.registry import Entry

TABLE = {
    "random": Entry("oodbench.strategies.random:Random", "images at random: the control"),
    "entropy": Entry("oodbench.strategies.entropy:Entropy", "highest entropy of the softmax", "Settles 2009"),
    "least-confidence": Entry(
        "oodbench.strategies.least_confidence:LeastConfidence", "lowest maximum of the softmax", "Lewis and Gale 1994"
    ),
    "margin": Entry(
        "oodbench.strategies.margin:Margin", "smallest difference of the two likeliest classes", "Scheffer et al. 2001"
    ),
    "bald": Entry(
        "oodbench.strategies.bald:BALD", "disagreement between passes with dropout", "arXiv 1112.5745", parameters="passes p"
    ),
    "coreset": Entry("oodbench.strategies.coreset:Coreset", "greedy k-centre on features", "arXiv 1708.00489"),
    "badge": Entry("oodbench.strategies.badge:BADGE", "k-means++ on gradients of the last layer", "arXiv 1906.03671"),
}

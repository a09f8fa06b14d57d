"""Classes that two sets share under different names: their images are not anomalies for a network that knows the other set.

``tinyimagenet:disjoint`` leaves out the classes that are also in CIFAR-10. Which ones these are is a judgement, made class
by class from the names: boats count as ships, vans as trucks, and a puma does not count as a cat. CIFAR-100 is disjoint from
CIFAR-10 by construction (Krizhevsky 2009; its pickup trucks are neither automobiles nor trucks there).
"""

from typing import NamedTuple


class Overlap(NamedTuple):
    """What a set shares with an in-distribution set.

    Attributes:
        selection: the name of the rest, ``SET:selection``.
        classes: the shared classes: name in the set, and in words.
    """

    selection: str
    classes: dict[str, str]


OVERLAPS = {  # (set, in-distribution set)
    ("tinyimagenet", "cifar10"): Overlap(
        "disjoint",
        {
            "n01641577": "bullfrog", "n01644900": "tailed frog", "n01855672": "goose", "n02002724": "black stork",
            "n02056570": "king penguin", "n02058221": "albatross", "n02085620": "Chihuahua", "n02094433": "Yorkshire terrier",
            "n02099601": "golden retriever", "n02099712": "Labrador retriever", "n02106662": "German shepherd",
            "n02113799": "standard poodle", "n02123045": "tabby", "n02123394": "Persian cat", "n02124075": "Egyptian cat",
            "n02814533": "beach wagon", "n03100240": "convertible", "n03447447": "gondola", "n03662601": "lifeboat",
            "n03670208": "limousine", "n03796401": "moving van", "n03977966": "police van", "n04285008": "sports car",
        },
    ),
    ("tinyimagenet", "cifar100"): Overlap(
        "disjoint-cifar100",
        {
            "n01443537": "goldfish", "n01698640": "American alligator", "n01742172": "boa constrictor",
            "n01774384": "black widow", "n01774750": "tarantula", "n01944390": "snail", "n01983481": "American lobster",
            "n01984695": "spiny lobster", "n02129165": "lion", "n02132136": "brown bear", "n02165456": "ladybug",
            "n02206856": "bee", "n02233338": "cockroach", "n02279972": "monarch", "n02281406": "sulphur butterfly",
            "n02403003": "ox", "n02410509": "bison", "n02437312": "Arabian camel", "n02481823": "chimpanzee",
            "n02504458": "African elephant", "n02823428": "beer bottle", "n02917067": "bullet train",
            "n03085013": "computer keyboard", "n03179701": "desk", "n03201208": "dining table", "n03393912": "freight car",
            "n03637318": "lampshade", "n03649909": "lawn mower", "n03902125": "pay-phone", "n03937543": "pill bottle",
            "n03983396": "pop bottle", "n04008634": "projectile", "n04099969": "rocking chair", "n04146614": "school bus",
            "n04311004": "steel arch bridge", "n04366367": "suspension bridge", "n04465501": "tractor",
            "n04487081": "trolleybus", "n04532670": "viaduct", "n07579787": "plate", "n07720875": "bell pepper",
            "n07734744": "mushroom", "n07747607": "orange", "n09193705": "alp", "n09428293": "seashore",
        },
    ),
}  # fmt: skip


def shared_classes(name: str, selection: str) -> dict[str, str] | None:
    """The classes that ``name:selection`` leaves out, or None if it is not such a selection."""
    found = (overlap.classes for (of, _), overlap in OVERLAPS.items() if (of, overlap.selection) == (name, selection))
    return next(found, None)


def overlap_of(dataset: str, in_distribution: str) -> Overlap | None:
    """What a whole set shares with an in-distribution set, both by name; None where that is nothing, or unknown."""
    base = dataset.removesuffix("-crop").removesuffix("-resize")  # ODIN's files are made from the same images
    return OVERLAPS.get((base, in_distribution))

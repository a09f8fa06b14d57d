"""The detectors of pytorch-ood for oodbench: a class for each, under the name that it has in pytorch-ood.

pyproject.toml registers them. Hyper-parameters and their defaults are pytorch-ood's, except for what is given here.
"""

import pytorch_ood
import pytorch_ood.detector as theirs

from oodbench_pytorch_ood.adapters import (
    AllClasses,
    Coverage,
    Dropout,
    Features,
    GramVectors,
    LastLayer,
    LastMaps,
    Layers,
    Logits,
    PooledMaps,
    Step,
    StepByDistance,
    adapt,
)
from oodbench_pytorch_ood.gram import PrecomputedGram

# A run records a hash of this code but not of pytorch-ood, so the version that computes the scores is named here.
if pytorch_ood.__version__ != "0.4.0":
    raise ImportError(
        f"these adapters are for pytorch-ood 0.4.0, not {pytorch_ood.__version__}: pip install pytorch-ood==0.4.0"
    )

LAST_LAYER = "Only the weights of the final linear layer count."

# From the logits.
MaxSoftmax = adapt(theirs.MaxSoftmax, Logits)
MaxLogit = adapt(theirs.MaxLogit, Logits)
EnergyBased = adapt(theirs.EnergyBased, Logits)
Entropy = adapt(theirs.Entropy, Logits)
GEN = adapt(theirs.GEN, Logits)
KLMatching = adapt(theirs.KLMatching, Logits, calibrates=True)
TemperatureScaling = adapt(theirs.TemperatureScaling, Logits, labelled=True, calibrates=True)
OpenMax = adapt(theirs.OpenMax, AllClasses, labelled=True)

# From the features.
KNN = adapt(theirs.KNN, Features)
ViM = adapt(theirs.ViM, Features, "d is half the number of features if it is larger than that number.", d=512)
Mahalanobis = adapt(theirs.Mahalanobis, Features, labelled=True)
RMD = adapt(theirs.RMD, Features, labelled=True)
GMM = adapt(theirs.GMM, Features, "A Gaussian for each class; pytorch-ood names no paper.", labelled=True)
SHE = adapt(theirs.SHE, Features, labelled=True)
DICE = adapt(theirs.DICE, Features, p=0.9)
LTS = adapt(theirs.LTS, Features)
fDBD = adapt(theirs.fDBD, Features)
NCI = adapt(theirs.NCI, Features)
NNGuide = adapt(theirs.NNGuide, Features)
PNML = adapt(theirs.PNML, Features)
ReAct = adapt(theirs.ReAct, PooledMaps)
VRA = adapt(theirs.VRA, PooledMaps)
ASH = adapt(theirs.ASH, PooledMaps)
SCALE = adapt(theirs.SCALE, PooledMaps)
GradNorm = adapt(theirs.GradNorm, LastLayer, LAST_LAYER)
GradUncertainty = adapt(theirs.GradUncertainty, LastLayer, LAST_LAYER)
NACUE = adapt(theirs.NACUE, Coverage, "The only layer is what the final linear layer reads.")

# From the layers.
MultiMahalanobis = adapt(theirs.MultiMahalanobis, Layers, labelled=True)
RankFeat = adapt(theirs.RankFeat, LastMaps, "It changes the maps of the last layer.")
Gram = adapt(PrecomputedGram, GramVectors, labelled=True, seed=None)

# From further passes of the network.
ODIN = adapt(theirs.ODIN, Step)
MahalanobisODIN = adapt(theirs.MahalanobisODIN, StepByDistance, labelled=True)
MCD = adapt(theirs.MCD, Dropout, "p is for networks without dropout: features are then dropped.", p=0.5, seed=None)

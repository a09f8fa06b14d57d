"""The detectors: one method, one paper, one file each. This table lists them all."""

from oodbench.registry import Entry

TABLE = {
    # From the logits.
    "msp": Entry(
        "oodbench.detectors.msp:MSP", "One minus the largest softmax probability", "Hendrycks & Gimpel 2017", "nothing"
    ),
    "maxlogit": Entry("oodbench.detectors.maxlogit:MaxLogit", "Minus the largest logit", "Hendrycks et al. 2022", "nothing"),
    "energy": Entry(
        "oodbench.detectors.energy:Energy", "Free energy of the logits", "Liu et al. 2020", "nothing", parameters="temperature"
    ),
    "entropy": Entry("oodbench.detectors.entropy:Entropy", "Entropy of the softmax", "Lakshminarayanan et al. 2017", "nothing"),
    "klm": Entry(
        "oodbench.detectors.klm:KLMatching",
        "KL divergence of the softmax from the nearest class's typical softmax",
        "Hendrycks et al. 2022",
        "held-out training images",
    ),
    "gen": Entry(
        "oodbench.detectors.gen:GEN",
        "Generalised entropy of the largest softmax probabilities",
        "Liu et al. 2023",
        "nothing; a validation shift",
        parameters="gamma top gammas tops",
    ),
    "gradtrust": Entry(
        "oodbench.detectors.gradtrust:GradTrust",
        "Largest over mean variance of squared last-layer gradients, in closed form",
        "Prabhushankar & AlRegib 2024",
        "nothing",
    ),
    "tempscale": Entry(
        "oodbench.detectors.tempscale:TemperatureScaling",
        "Largest softmax probability of calibrated logits, as log-odds",
        "Guo et al. 2017",
        "labelled held-out training images",
    ),
    # From the penultimate features.
    "knn": Entry(
        "oodbench.detectors.knn:KNN",
        "Distance to the k-th nearest normalised training feature",
        "Sun et al. 2022",
        "training images; a validation shift",
        parameters="k ks",
    ),
    "vim": Entry(
        "oodbench.detectors.vim:ViM",
        "Virtual logit of the residual outside the principal subspace, compared with the energy",
        "Wang et al. 2022",
        "training images; a validation shift",
        parameters="dimension dimensions",
    ),
    "react": Entry(
        "oodbench.detectors.react:ReAct",
        "Energy of clipped features",
        "Sun et al. 2021",
        "held-out training images; a validation shift",
        parameters="percentile percentiles",
    ),
    "ash": Entry(
        "oodbench.detectors.ash:ASH",
        "Energy of pruned and binarised features",
        "Djurisic et al. 2023",
        "nothing; a validation shift",
        parameters="percentile percentiles",
    ),
    "scale": Entry(
        "oodbench.detectors.scale:Scale",
        "Energy of scaled features",
        "Xu et al. 2024",
        "nothing; a validation shift",
        parameters="percentile percentiles",
    ),
    "ash-s": Entry(
        "oodbench.detectors.ash_s:ASHS",
        "Energy of pruned and scaled features",
        "Djurisic et al. 2023",
        "nothing; a validation shift",
        parameters="percentile percentiles",
    ),
    "dice": Entry(
        "oodbench.detectors.dice:DICE",
        "Energy with only the weights that contribute most",
        "Sun & Li 2022",
        "training images; a validation shift",
        parameters="percentile percentiles",
    ),
    "vra": Entry(
        "oodbench.detectors.vra:VRA",
        "Energy of features without small values and with large ones capped",
        "Xu et al. 2023",
        "held-out training images; a validation shift",
        parameters="low high lows highs",
    ),
    "fdbd": Entry(
        "oodbench.detectors.fdbd:FDBD",
        "Minus the mean distance to decision boundaries, relative to the distance from the training mean",
        "Liu & Qin 2024",
        "training images",
    ),
    "nci": Entry(
        "oodbench.detectors.nci:NCI",
        "Minus the projection of centred features on the weights of the predicted class",
        "Liu & Qin 2025",
        "training images; a validation shift",
        parameters="alpha alphas",
    ),
    "rmd": Entry(
        "oodbench.detectors.rmd:RelativeMahalanobis",
        "Mahalanobis distance to the nearest class minus the distance to the whole training set",
        "Ren et al. 2021",
        "labelled training images",
    ),
    "rmd++": Entry(
        "oodbench.detectors.rmd_plus:RelativeMahalanobisPlusPlus",
        "Relative Mahalanobis distance of normalised features",
        "Müller & Hein 2025",
        "labelled training images",
    ),
    "nnguide": Entry(
        "oodbench.detectors.nnguide:NNGuide",
        "Minus the energy, guided by the nearest training features",
        "Park et al. 2023",
        "training images",
        parameters="k size seed",
    ),
    "neco": Entry(
        "oodbench.detectors.neco:NECO",
        "Share of standardised features outside their principal directions",
        "Ben Ammar et al. 2024",
        "training images; a validation shift",
        parameters="dimension max_logit dimensions",
    ),
    "kpca": Entry(
        "oodbench.detectors.kpca:KernelPCA",
        "Reconstruction error of normalised features by PCA, also of random Fourier features",
        "Fang et al. 2024",
        "training images",
        parameters="variance mapped_variance gamma mapped seed",
    ),
    "she": Entry(
        "oodbench.detectors.she:SHE",
        "Inner product with the stored pattern of the predicted class",
        "Zhang et al. 2023",
        "labelled training images",
    ),
    "gradnorm": Entry(
        "oodbench.detectors.gradnorm:GradNorm",
        "Gradient norm of the last layer for the KL divergence from uniform, in closed form",
        "Huang et al. 2021",
        "nothing",
    ),
    "mahalanobis-v": Entry(
        "oodbench.detectors.mahalanobis:MahalanobisV",
        "Mahalanobis distance at the penultimate features",
        "Lee et al. 2018",
        "labelled training images",
    ),
    "mahalanobis++": Entry(
        "oodbench.detectors.mahalanobis_plus:MahalanobisPlusPlus",
        "Mahalanobis distance at normalised penultimate features",
        "Müller & Hein 2025",
        "labelled training images",
    ),
    "ddu": Entry(
        "oodbench.detectors.ddu:DDU",
        "Minus the log-density of the features under one Gaussian per class",
        "Mukhoti et al. 2023",
        "labelled training images",
    ),
    "duq": Entry(
        "oodbench.detectors.duq:DUQ",
        "Distance to the nearest class centroid under an RBF head trained on the frozen network's features",
        "van Amersfoort et al. 2020",
        "labelled training images",
        parameters="embedding_size length_scale penalty gamma epochs lr weight_decay batch_size",
    ),
    "introspective": Entry(
        "oodbench.detectors.introspective:Introspective",
        "One minus the largest softmax probability of a second network, on gradients of the last layer",
        "Prabhushankar & AlRegib 2022",
        "labelled training images",
        parameters="loss contrast epochs lr batch_size temperature epsilon",
    ),
    # From several layers, or from a step on the input.
    "rankfeat": Entry(
        "oodbench.detectors.rankfeat:RankFeat",
        "Energy without the largest singular component of the last maps",
        "Song et al. 2022",
        "nothing",
    ),
    "adascale": Entry(
        "oodbench.detectors.adascale:AdaSCALE",
        "Energy of features scaled by how stable they are when the input changes",
        "Regmi 2025",
        "training images; a validation shift",
        parameters="least most percentiles",
    ),
    "odin": Entry(
        "oodbench.detectors.odin:ODIN",
        "Softmax at high temperature after a step on the input",
        "Liang et al. 2018",
        "nothing; a validation shift",
        parameters="temperature epsilon temperatures epsilons",
    ),
    "mahalanobis-p": Entry(
        "oodbench.detectors.mahalanobis:MahalanobisP",
        "Mahalanobis distance at the penultimate features after a step on the input",
        "Lee et al. 2018",
        "labelled training images; a validation shift",
        parameters="epsilon epsilons",
    ),
    "mahalanobis-fe": Entry(
        "oodbench.detectors.mahalanobis:MahalanobisFE",
        "Mahalanobis distances at all layers",
        "Lee et al. 2018",
        "labelled training images; a validation shift",
    ),
    "mahalanobis-pfe": Entry(
        "oodbench.detectors.mahalanobis:MahalanobisPFE",
        "Mahalanobis distances at all layers after a step on the input",
        "Lee et al. 2018",
        "labelled training images; a validation shift",
        parameters="epsilon epsilons",
    ),
    "lid": Entry(
        "oodbench.detectors.lid:LID",
        "Local intrinsic dimensionality among reference images, at all layers",
        "Ma et al. 2018",
        "training images; a validation shift",
        parameters="k size references seed reference",
    ),
    "gram": Entry(
        "oodbench.detectors.gram:Gram",
        "Channel correlations outside the range seen on training images of the predicted class",
        "Sastry & Oore 2020",
        "training images",
        parameters="powers",
    ),
    # From several predictions.
    "ensemble": Entry(
        "oodbench.detectors.ensemble:Ensemble",
        "Entropy of the mean softmax of several networks",
        "Lakshminarayanan et al. 2017",
        "labelled training images",
        parameters="members epochs lr batch_size",
    ),
    "mc-dropout": Entry(
        "oodbench.detectors.mc_dropout:MCDropout",
        "Entropy of the mean softmax over several passes with dropout",
        "Gal & Ghahramani 2016",
        "nothing",
        parameters="passes p seed",
    ),
    # From an autoencoder that the detector trains.
    "gradcon": Entry(
        "oodbench.detectors.gradcon:GradCon",
        "Reconstruction error of an autoencoder minus the alignment of its gradients with training gradients",
        "Kwon et al. 2020",
        "training images",
        parameters="epochs alpha beta",
    ),
    "gradcon-vae": Entry(
        "oodbench.detectors.gradcon:GradConVAE",
        "GradCon with a variational autoencoder",
        "Kwon et al. 2020",
        "training images",
        parameters="epochs alpha beta",
    ),
    # From parameter gradients.
    "purview": Entry(
        "oodbench.detectors.purview:Purview",
        "Squared gradient norm of every parameter tensor under a confounding label",
        "Lee et al. 2023",
        "held-out training images; a validation shift",
        parameters="label",
    ),
    # The control.
    "pixels": Entry(
        "oodbench.detectors.pixels:Pixels",
        "Control: simple image statistics, without the network",
        "Hasler & Süsstrunk 2003",
        "held-out training images; a validation shift",
    ),
    "untrained": Entry(
        "oodbench.detectors.untrained:Untrained",
        "Control: purview on the network with random weights",
        "Adebayo et al. 2018",
        "training images; a validation shift",
        parameters="label",
    ),
}

"""The metrics of image quality: one metric, one paper, one file each. This table lists them all."""

from oodbench.registry import Entry

_HOME = "oodbench.quality_metrics."

TABLE = {
    "psnr": Entry(f"{_HOME}psnr:PSNR", "Peak signal-to-noise ratio over the colour channels", ""),
    "psnr-ha": Entry(
        f"{_HOME}psnr_ha:PSNRHA",
        "PSNR weighted by contrast sensitivity, lenient on mean and contrast",
        "Ponomarenko et al. 2011",
    ),
    # From structural similarity.
    "ssim": Entry(f"{_HOME}ssim:SSIM", "Similarity of luminance, contrast and structure", "Wang et al. 2004"),
    "ms-ssim": Entry(f"{_HOME}ms_ssim:MSSSIM", "SSIM at five scales", "Wang et al. 2003"),
    "iw-ssim": Entry(f"{_HOME}iw_ssim:IWSSIM", "MS-SSIM weighted by information content", "Wang & Li 2011"),
    # From features and information.
    "sr-sim": Entry(f"{_HOME}sr_sim:SRSIM", "Similarity of saliency and gradients", "Zhang & Li 2012"),
    "fsim": Entry(f"{_HOME}fsim:FSIM", "Similarity of phase congruency and gradients", "Zhang et al. 2011"),
    "fsimc": Entry(f"{_HOME}fsimc:FSIMc", "FSIM with chroma", "Zhang et al. 2011"),
    "vif": Entry(f"{_HOME}vif:VIF", "Visual information fidelity, in the pixel domain", "Sheikh & Bovik 2006"),
    # From models of colour and of the eye.
    "persim": Entry(f"{_HOME}persim:PerSIM", "Similarity of Laplacians and of chroma at three scales", "Temel & AlRegib 2015"),
    "csv": Entry(
        f"{_HOME}csv:CSV",
        "Differences of colour names, structure and retinal response",
        "Temel & AlRegib 2016",
        "a table of colour names",
        "table",
    ),
    "summer": Entry(f"{_HOME}summer:SUMMER", "Spectra of the error at four scales", "Temel & AlRegib 2019"),
    # From a learnt dictionary.
    "unique": Entry(
        f"{_HOME}unique:UNIQUE", "Rank correlation of sparse responses", "Temel et al. 2016", "unlabelled images", "folder"
    ),
    "ms-unique": Entry(
        f"{_HOME}ms_unique:MSUNIQUE",
        "UNIQUE with five dictionaries and sharpness weights",
        "Prabhushankar et al. 2017",
        "unlabelled images",
        "folder",
    ),
    "introspective-unique": Entry(
        f"{_HOME}introspective_unique:IntrospectiveUNIQUE",
        "UNIQUE with gradients of the decoder",
        "Kwon et al. 2019",
        "unlabelled images",
        "folder",
    ),
}

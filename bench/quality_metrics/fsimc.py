"""FSIMc (Zhang, Zhang, Mou and Zhang, IEEE TIP 2011)."""

from oodbench.quality_metrics.fsim import FSIM


class FSIMc(FSIM):
    """FSIM in colour: S_P·S_G is multiplied by |S_I·S_Q|^.03, similarities of the chroma of YIQ with T = 200."""

    chromatic = True

"""Stain jitter for haematoxylin and eosin: a slide as if it had been dyed longer, or with another batch of dye.

Light passes dyes one after the other, so absorbances add (Beer-Lambert): -log10(I / I0) = S @ concentrations, with S the absorbance
of each dye in red, green and blue. Ruifrok & Johnston 2001 measured S; Tellez et al. 2018 jitter the concentrations: c (1 + a) + b.
"""

import torch
from torch import Tensor

WHITE = 255.0
# rows: haematoxylin, eosin, residual (as DAB in the paper); columns: absorbance in red, green, blue, of unit length
STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))


def jitter_stain(views: Tensor, jitter: Tensor) -> Tensor:
    """(B, V, 3, Y, X) in 0..255, recoloured.

    jitter: (B, 2, 3) a and four times b, per patch and dye; zeros change nothing.

    Raises:
        ValueError: when the image is no RGB slide.
    """
    if views.shape[2] != 3 or views.ndim != 5:
        raise ValueError(f"stain jitter is for RGB slides, these patches are {tuple(views.shape[2:])}: set stain=0")
    stains = torch.tensor(STAINS, device=views.device)
    stains = stains / stains.norm(dim=1, keepdim=True)
    absorbed = -torch.log10((views.clamp(min=1)) / WHITE)
    concentrations = torch.einsum("bvcyx,cs->bvsyx", absorbed, torch.linalg.inv(stains))
    times, plus = (jitter[:, i].reshape(-1, 1, 3, 1, 1) for i in (0, 1))
    changed = concentrations * (1 + times) + plus / 4
    # white glass stays white: only what is dyed is dyed otherwise
    changed = torch.where(absorbed.amax(dim=2, keepdim=True) < 0.02, concentrations, changed)
    recoloured = WHITE * 10 ** -torch.einsum("bvsyx,sc->bvcyx", changed, stains)
    return recoloured.clamp(0, WHITE)

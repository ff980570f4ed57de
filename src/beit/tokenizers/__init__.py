"""Images to grids of visual tokens and back."""

from beit.tokenizers.base import VisualTokenizer
from beit.tokenizers.dvae import DiscreteVAE, DiscreteVAEOutput

__all__ = ["DiscreteVAE", "DiscreteVAEOutput", "VisualTokenizer"]

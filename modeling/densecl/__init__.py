"""DenseCL: Dense Contrastive Learning for Self-Supervised Visual Pre-Training (arXiv 2011.09157)."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_densecl import *
    from .image_processing_densecl import *
    from .losses_densecl import *
    from .modeling_densecl import *
    from .outputs_densecl import *
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)

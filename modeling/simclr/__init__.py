"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (arXiv 2002.05709, 2006.10029)."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_simclr import *
    from .image_processing_simclr import *
    from .losses_simclr import *
    from .modeling_simclr import *
    from .outputs_simclr import *
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)

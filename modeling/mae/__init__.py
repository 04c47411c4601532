"""MAE: Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377)."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_mae import *
    from .image_processing_mae import *
    from .modeling_mae import *
    from .outputs_mae import *
    from .pyramid_mae import *
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)

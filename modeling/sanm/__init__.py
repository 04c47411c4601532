"""SANM: Self-supervised Adversarial Noisy Masking, training with wrong labels (Tu et al., CVPR 2023, 2302.06805)."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_sanm import *
    from .encoders_sanm import *
    from .image_processing_sanm import *
    from .losses_sanm import *
    from .masking_sanm import *
    from .modeling_sanm import *
    from .outputs_sanm import *
    from .pretrained_sanm import *
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)

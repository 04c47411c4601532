"""Positional labels: where a patch token sits, as an auxiliary target of vision transformers (arXiv 2206.04981)."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_positional_label import *
    from .heads_positional_label import *
    from .labels_positional_label import *
    from .modeling_positional_label import *
    from .outputs_positional_label import *
    from .pretraining_positional_label import *
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)

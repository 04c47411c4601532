"""hubmodels: published methods as exact, composable transformers models.

Importing the package registers every method with the transformers Auto classes; all names below are loaded on first
use.

```python
>>> import hubmodels
>>> from transformers import AutoModelForPreTraining

>>> model = AutoModelForPreTraining.from_pretrained(hubmodels.packaged_path("mae-small-32"))
```
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hubmodels.catalog import CHECKPOINTS, METHODS, get_checkpoint, get_method, packaged_path
from hubmodels.registration import register

_EXPORTS = {
    "train": "hubmodels.training",
    "evaluate": "hubmodels.evaluation",
    "publish": "hubmodels.publishing",
    "convert": "hubmodels.conversion",
    "load_image_dataset": "hubmodels.data",
    "subset_indices": "hubmodels.data",
    "inject_label_noise": "hubmodels.data",
    "load_cifar_n_labels": "hubmodels.data",
    "NoisyLabelReport": "hubmodels.evaluation",
    "SANMTrainer": "hubmodels.training",
    "AdversarialNoisyMasking": "hubmodels.modeling.sanm",
    "mask_labels": "hubmodels.modeling.sanm",
    "LabelQualityEstimator": "hubmodels.evaluation",
    **{name: method.module for method in METHODS for name in method.auto_classes.values()},
    **{name: method.module for method in METHODS for names in method.further_classes.values() for name in names},
}

__version__ = "0.1.0"
__all__ = ["CHECKPOINTS", "METHODS", "get_checkpoint", "get_method", "packaged_path", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})


register()

"""Classes and functions that pickles of training runs may refer to, besides those of torch's weights-only reader.

Names that only stand beside the weights (logs, settings) get stand-ins: their own code is never imported or run.
"""

import argparse
from typing import Any

import numpy as np


class Inert:
    """Stands for a class or function whose result nobody needs: takes any arguments and keeps none of them."""

    def __new__(cls, *args: Any) -> "Inert":
        """Make an empty object, whatever is passed."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


def _numpy_names() -> list[Any]:
    """What pickled arrays and scalars refer to; numpy 1 and 2 have two names for their constructors."""
    room = getattr(np, "_core", None) or np.core
    constructors = ((getattr(room.multiarray, name), name) for name in ("_reconstruct", "scalar"))
    kinds = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "U", "S"]
    return [
        *(
            (function, f"numpy.{where}.multiarray.{name}")
            for function, name in constructors
            for where in ("core", "_core")
        ),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
    ]


# Command-line arguments, and the numbers and arrays of numpy; none of their constructors runs code of the file.
ALLOWED_CLASSES: tuple[Any, ...] = (argparse.Namespace, *_numpy_names())

# Logs of mmengine's runner (`message_hub`), whose statistics are methods that are looked up with getattr. Pickles name
# its module as Python 2 did, which torch translates.
MMENGINE_CLASSES: tuple[Any, ...] = tuple(
    (Inert, name)
    for name in ("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "__builtin__.getattr")
)

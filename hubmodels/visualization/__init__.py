"""Pictures of what a model does: reconstructions, anomaly maps and attention, as matplotlib figures."""

from .anomaly import anomaly_map, anomaly_sheet
from .attention import attention_maps, attention_sheet
from .figures import save_figure, to_pictures
from .reconstruction import reconstruction_sheet

__all__ = [
    "anomaly_map",
    "anomaly_sheet",
    "attention_maps",
    "attention_sheet",
    "reconstruction_sheet",
    "save_figure",
    "to_pictures",
]

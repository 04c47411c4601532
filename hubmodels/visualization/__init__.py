"""Pictures of what a model does: reconstructions, anomaly maps, attention, views and their correspondences, embeddings,
masks of the most activated regions, suspicious labels, places of patches.

All are matplotlib figures.
"""

from .anomaly import anomaly_map, anomaly_sheet
from .attention import attention_maps, attention_sheet
from .embeddings import embedding_map, embedding_plane
from .figures import save_figure, to_pictures
from .masking import masking_sheet
from .noisy_label_sheet import noisy_label_sheet
from .positions import PositionErrors, position_errors, position_probe_curves, position_sheet
from .reconstruction import reconstruction_sheet
from .views import Correspondences, correspondences, dense_correspondences, view_pairs

__all__ = [
    "Correspondences",
    "PositionErrors",
    "anomaly_map",
    "anomaly_sheet",
    "attention_maps",
    "attention_sheet",
    "correspondences",
    "dense_correspondences",
    "embedding_map",
    "embedding_plane",
    "masking_sheet",
    "noisy_label_sheet",
    "position_errors",
    "position_probe_curves",
    "position_sheet",
    "reconstruction_sheet",
    "save_figure",
    "to_pictures",
    "view_pairs",
]

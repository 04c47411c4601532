"""Labels of one data set numbered as the classes of a model, or of another part of the data."""

import re
from collections.abc import Sequence

from hubmodels.data.images import ImageDataset

_UNNAMED = re.compile(r"(LABEL_)?\d+")
_WORDNET = re.compile(r"n\d{8}")  # the folders of ImageNet, in the order of its classes


def match_classes(
    dataset: ImageDataset, class_names: Sequence[str], owner: str = "the model"
) -> tuple[ImageDataset, list[str]]:
    """Number a data set's labels as a classifier (or another split) numbers its classes.

    Classes are matched by name, and by number where the classifier has no names (LABEL_0, LABEL_1, ... or numbers),
    or the data only have numbers or the folders of ImageNet.

    Args:
        dataset: Labelled data.
        class_names: The classifier's class names, in label order.
        owner: Whose classes these are, for errors.

    Returns:
        (the data set with the classifier's labels, the class names to show).

    Raises:
        ValueError: Classes of the data are not among the classifier's, or the numbers of classes differ.
    """
    names = list(class_names)
    unknown = [name for name in dataset.class_names if name not in names]
    if not unknown:
        return dataset.relabelled([names.index(name) for name in dataset.class_names], names), names
    if len(unknown) < dataset.num_classes:
        raise ValueError(f"classes of the data that {owner} does not know: {', '.join(unknown)}")
    if all(name.isdecimal() and int(name) < len(names) for name in dataset.class_names):
        return dataset.relabelled([int(name) for name in dataset.class_names], names), names
    if dataset.num_classes != len(names):
        raise ValueError(f"{owner} has {len(names)} classes, the data {dataset.num_classes}")
    if not all(map(_UNNAMED.fullmatch, names)) and not all(map(_WORDNET.fullmatch, dataset.class_names)):
        raise ValueError(
            f"{owner} knows none of the classes of the data ({', '.join(dataset.class_names[:5])}), but "
            f"{', '.join(names[:5])}"
        )
    return dataset, dataset.class_names

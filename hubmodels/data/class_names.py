"""Labels of one data set numbered as the classes of a model, or of another part of the data."""

from collections.abc import Sequence

from hubmodels.data.images import ImageDataset


def match_classes(
    dataset: ImageDataset, class_names: Sequence[str], owner: str = "the model"
) -> tuple[ImageDataset, list[str]]:
    """Number a data set's labels as a classifier (or another split) numbers its classes.

    Classes are matched by name where the names agree, and by number where all of them differ (a model without class
    names calls its classes LABEL_0, LABEL_1, ...) or the data only have numbers.

    Args:
        dataset: Labelled data.
        class_names: The classifier's class names, in label order.
        owner: Whose classes these are, for errors.

    Returns:
        (the data set with the classifier's labels, the class names to show).

    Raises:
        ValueError: Some classes of the data are not among the classifier's, or the numbers of classes differ.
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
    return dataset, dataset.class_names

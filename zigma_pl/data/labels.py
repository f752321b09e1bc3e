"""Labels of samples in grids and tables: names of classes, and captions."""

from collections.abc import Collection, Sequence

from zigma_pl.core.batch import CAPTION, CLASS, RawBatch


def class_label(class_id: int, class_names: Sequence[str] | None) -> str:
    """Return the name of a class, such as "class 3" if its name is unknown."""
    names = class_names or ()
    return names[class_id] if class_id < len(names) else f"class {class_id}"


def labels_of(
    raw: RawBatch, class_names: Sequence[str] | None, conditions: Collection[str] = (CLASS, CAPTION)
) -> list[str]:
    """Return a label for each sample of a batch: its class, its caption, or both; "" without them.

    Args:
        raw: the batch.
        class_names: names of classes 0, 1, ..., if known.
        conditions: names of the conditions to show, such as those of a backbone.
    """
    labels = [""] * len(raw.sample_ids)
    if raw.class_ids is not None and CLASS in conditions:
        labels = [class_label(class_id, class_names) for class_id in raw.class_ids.tolist()]
    if raw.captions is not None and CAPTION in conditions:
        labels = [f"{name}: {text}" if name else text for name, text in zip(labels, raw.captions, strict=True)]
    return labels

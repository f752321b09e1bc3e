"""Shape checks for the arguments of public modules."""

from torch import Tensor

from zigma_pl.core.errors import UserError


def check_shape(owner: str, name: str, tensor: Tensor, axes: str, *sizes: int | None) -> None:
    """Check the shape of a tensor.

    Args:
        owner: name of the module, for the error.
        name: name of the argument.
        tensor: its value.
        axes: the documented shape, such as "(B, L, D)".
        sizes: expected size of each axis, None for any.

    Raises:
        UserError: the number of axes or a size differs.
    """
    shape = tensor.shape
    fits = len(shape) == len(sizes)
    if not fits or any(size not in (None, found) for size, found in zip(sizes, shape, strict=True)):
        expected = ", ".join(
            letter if size is None else str(size) for letter, size in zip(axes[1:-1].split(", "), sizes, strict=False)
        )
        raise UserError(f"{owner}: {name} must be {axes} = ({expected.rstrip(',')}), got {tuple(shape)}")

"""The layers of a backbone, from its config or its record, in the form in which `zigma_pl.scan` predicts its loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from zigma_pl.core.class_paths import find_class, parsed_options
from zigma_pl.core.errors import UserError
from zigma_pl.models.backbones.mixer_backbone import SIZES, MixerBackbone
from zigma_pl.models.mixers import Mamba, Mamba2, MixerOptions, ParallelDirections, SelfAttention
from zigma_pl.models.mixers.base import layers_of
from zigma_pl.models.mixers.self_attention import default_num_heads
from zigma_pl.scan.layers import MAMBA2_RATES, REFERENCE_RATES, Attention, Layer, Scan, layers_of_scan

_READ = ("size", "width", "mixers", "scan")


def layers_of_backbone(
    class_path: str,
    options: Mapping[str, Any],
    depth: int,
    height: int,
    width: int,
    num_frames: int | None = None,
    *,
    rates: Sequence[float] = REFERENCE_RATES,
    allow_imports: Sequence[str] = (),
) -> list[Layer]:
    """Return the layers of a backbone, which can be passed to `zigma_pl.scan.prediction.predicted_loss`.

    Args:
        class_path: class of the backbone, such as "zigma_pl.backbones.ZigMa" or, in a record, "ZigMa".
        options: its options, of which only those of size, mixers and scan are read.
        depth: number of layers.
        height, width: size of the token grid.
        num_frames: frames of a clip, None for images.
        rates: decay rates of Mamba-1.
        allow_imports: packages whose classes may be named.

    Raises:
        UserError: there is no prediction for the backbone or a mixer, or a scheme is not defined on the grid.
    """
    backbone = find_class(class_path, MixerBackbone, allow_imports)  # type: ignore[type-abstract]
    chosen = parsed_options(backbone, {name: options[name] for name in _READ if options.get(name)}, allow_imports)
    scan = chosen.get("scan") or backbone.default_scan
    mixers = layers_of(chosen.get("mixers") or backbone.default_mixers(scan), depth)
    channels = chosen.get("width") or SIZES[chosen["size"]][0]
    num_orders = {mixer.num_orders for mixer in mixers} - {0} or {1}
    if len(num_orders) > 1:
        raise UserError(f"{class_path}: layers with different numbers of directions have no prediction: leave it out")
    templates = [_template(mixer, channels, tuple(rates)) for mixer in mixers]
    return layers_of_scan(scan, templates, height, width, num_frames, num_orders.pop())


def _template(mixer: MixerOptions, channels: int, rates: tuple[float, ...]) -> Layer:
    """Return the layer of a mixer, without its paths."""
    if isinstance(mixer, ParallelDirections):
        return _template(mixer.direction or Mamba(conv_kernel=mixer.conv_kernel), channels, rates)
    if isinstance(mixer, Mamba):
        return Scan(rates=rates, num_taps=mixer.conv_kernel - 1)
    if isinstance(mixer, Mamba2):
        return Scan(rates=MAMBA2_RATES, num_taps=mixer.conv_kernel - 1)
    if isinstance(mixer, SelfAttention):
        inner_width = mixer.inner_width or channels
        num_heads = mixer.num_heads or default_num_heads(inner_width)
        return Attention(num_heads, inner_width // num_heads)
    raise UserError(f"there is no prediction for the mixer {type(mixer).__name__}: leave the experiment out")

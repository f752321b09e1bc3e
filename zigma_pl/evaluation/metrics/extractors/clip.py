"""CLIP's image encoder (arXiv:2103.00020), for features and for the CLIP score."""

from torch import Tensor, nn

from zigma_pl.evaluation.metrics.extractors.listed import ListedExtractor
from zigma_pl.evaluation.metrics.extractors.pretrained import load_pretrained
from zigma_pl.evaluation.metrics.extractors.resize import normalise, resize_like_pillow

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class CLIPImage(ListedExtractor):
    """The projected image features of a CLIPModel, not normalised to unit length; 768 features for ViT-L/14."""

    name = "clip_image"
    weights_name = "clip-vit-large-patch14"
    resize = "shorter side to 224, bicubic, antialiased, as Pillow, then the centre; CLIP's mean and standard deviation"

    def load(self) -> nn.Module:
        """Return the CLIPModel with image and text encoder."""
        from transformers import CLIPModel

        network = load_pretrained(CLIPModel, self.name, self.path)
        self.dim = int(network.config.projection_dim)
        self.input_size_px = int(network.config.vision_config.image_size)
        return network

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Resize, crop the centre, and normalise."""
        height, width = pictures.shape[-2:]
        size_px, shorter = self.input_size_px, min(height, width)
        height, width = size_px * height // shorter, size_px * width // shorter
        resized = resize_like_pillow(pictures, height, width, "bicubic")
        top, left = (height - size_px) // 2, (width - size_px) // 2
        return normalise(resized[..., top : top + size_px, left : left + size_px], CLIP_MEAN, CLIP_STD)

    def features(self, pictures: Tensor) -> Tensor:
        """Return the projection of the class token."""
        pooled = self.network.vision_model(pixel_values=self.preprocess(pictures)).pooler_output  # type: ignore[operator]
        return self.network.visual_projection(pooled)  # type: ignore[operator]

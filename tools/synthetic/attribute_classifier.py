"""Measure how often sampled portraits show the attributes in their captions, compared with the real test split.

    python tools/synthetic/attribute_classifier.py data/synthetic/portraits --classifier build/attributes.pt
    python tools/synthetic/attribute_classifier.py data/synthetic/portraits --classifier build/attributes.pt \\
        --samples samples/table1_zigzag8/0123456789abcdef --out results/attributes/table1_zigzag8.json

A small convolutional network is trained on the attributes (attributes.jsonl) of the training split, with random
mirroring, at 64 px and in minutes on a CPU, unless its file exists. Samples are a folder written by `test`, with
sampling.json and chunks, or by `predict`, with samples.json. The attributes in a sample's caption are compared with
those that the network predicts. For samples of `test`, the real pictures are also compared with the captions of the
samples with the same ids.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from portrait_captions import VALUES, parse_caption
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import whole_file
from zigma_pl.data import MMCelebAHQ
from zigma_pl.data.images import decode_image, resize_and_crop, to_uint8_tensor
from zigma_pl.data.sources.mm_celeba_hq import CaptionedFaces, FacesOnDisk
from zigma_pl.evaluation.store import IDENTITY_NAME

SIZE_PX = 64
BATCH_SIZE = 128
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NO_LABEL = -100  # ignored by cross_entropy


class AttributeClassifier(nn.Module):
    """Predicts the logits of each attribute's values from pictures (B, 3, 64, 64), uint8."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for (before, after), stride in zip(pairwise(widths), (2, 2, 2, 1), strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3))
        self.heads = nn.ModuleDict({name: nn.Linear(16 * widths[-1], len(values)) for name, values in VALUES.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return logits (B, number of values) by attribute."""
        features = self.features((pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last))
        return {name: head(features) for name, head in self.heads.items()}


def main() -> None:
    """Train the network unless its file exists, then print and write accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of the portraits, written by portraits.py")
    parser.add_argument("--classifier", type=Path, required=True, help="file of the network's weights")
    parser.add_argument("--samples", type=Path, help="folder of samples written by test or predict")
    parser.add_argument("--out", type=Path, help="JSON file for the accuracies")
    parser.add_argument("--num-epochs", type=int, default=3, help="epochs of training")
    arguments = parser.parse_args()
    classifier = load_or_train(arguments.classifier, arguments.root, arguments.num_epochs)
    faces = FacesOnDisk(arguments.root).split("test")
    predicted = predict(classifier, pixels(faces))
    result: dict[str, Any] = {"real": accuracies(predicted, attributes_of(arguments.root, faces.image_ids))}
    if arguments.samples is not None:
        result |= compare(classifier, predicted, arguments.samples, arguments.root)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"num_real": len(faces), **result}, indent=1) + "\n")
    print_table(result)


def compare(
    classifier: AttributeClassifier, predicted_real: Sequence[Mapping[str, str]], samples: Path, root: Path
) -> dict[str, Any]:
    """Return the accuracies of samples; for samples of `test` also of real pictures, with the same ids and captions.

    Raises: UserError if the samples have no captions.
    """
    if (samples / IDENTITY_NAME).is_file():
        conditions = json.loads((samples / IDENTITY_NAME).read_text())["conditions"]
        if conditions is None:
            raise UserError(f"{samples}: these samples have no captions: give samples of a model with captions")
        pictures, sample_ids = read_store(samples)
        expected = [parse_caption(caption) for caption in captions_of(root, conditions["seed"], sample_ids)]
        of_real = [predicted_real[sample_id % len(predicted_real)] for sample_id in sample_ids]
        result = {"real_by_captions": accuracies(of_real, expected)}
    else:
        rows = json.loads((samples / "samples.json").read_text())["samples"]
        expected = [parse_caption(row["caption"]) for row in rows]
        pictures = torch.stack([to_size(decode_image(samples / row["file"])) for row in rows])
        result = {}
    return {"num_samples": len(expected), **result, "samples": accuracies(predict(classifier, pictures), expected)}


def read_store(folder: Path) -> tuple[Tensor, list[int]]:
    """Return the pictures (n, 3, 64, 64), uint8, and sample ids of all chunks in a folder."""
    pictures, sample_ids = [], []
    for path in sorted(folder.glob("chunk-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            pictures += [to_size(Image.fromarray(picture.transpose(1, 2, 0))) for picture in arrays["pictures"]]
            sample_ids += arrays["sample_ids"].tolist()
    return torch.stack(pictures), sample_ids


def captions_of(root: Path, seed: int, sample_ids: list[int]) -> list[str]:
    """Return the captions on which `test` conditions these samples."""
    captions = MMCelebAHQ(str(root), image_size_px=SIZE_PX, seed=seed).held_out_conditions("test", sample_ids).captions
    assert captions is not None
    return captions


def pixels(faces: CaptionedFaces) -> Tensor:
    """Return the pictures of a split, (n, 3, 64, 64), uint8."""
    images = (decode_image(faces.image_folder / f"{image_id}.jpg") for image_id in faces.image_ids)
    return torch.stack([to_size(image) for image in tqdm(images, "reading", len(faces), unit="images")])


def to_size(image: Image.Image) -> Tensor:
    """Return a picture at the network's input size, (3, 64, 64), uint8."""
    return to_uint8_tensor(resize_and_crop(image, SIZE_PX))


def attributes_of(root: Path, image_ids: Sequence[int]) -> list[dict[str, str]]:
    """Return the attributes of the pictures with these ids, without those that are not visible."""
    with (root / "attributes.jsonl").open(encoding="utf-8") as file:
        rows = {row["id"]: row for row in map(json.loads, file)}
    shown = [rows[image_id] for image_id in image_ids]
    return [{name: row[name] for name in VALUES if row[name] is not None} for row in shown]


def load_or_train(path: Path, root: Path, num_epochs: int) -> AttributeClassifier:
    """Return the network with the weights in a file; train it and write the file if it is missing."""
    classifier = AttributeClassifier()
    if not path.is_file():
        train(classifier, root, num_epochs)
        with whole_file(path) as temporary:
            torch.save(classifier.state_dict(), temporary)
    classifier.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return classifier.to(DEVICE).eval()


def train(classifier: AttributeClassifier, root: Path, num_epochs: int) -> None:
    """Train on the training split."""
    torch.manual_seed(0)
    classifier.to(DEVICE, memory_format=torch.channels_last).train()
    faces = FacesOnDisk(root).split("train")
    pictures, labels = pixels(faces), to_labels(attributes_of(root, faces.image_ids))
    num_steps = num_epochs * -(-len(pictures) // BATCH_SIZE)
    optimiser = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=num_steps)
    progress = tqdm(total=num_steps, desc="training", unit="steps")
    for _ in range(num_epochs):
        for batch in torch.randperm(len(pictures)).split(BATCH_SIZE):
            logits = classifier(mirrored_at_random(pictures[batch]).to(DEVICE))
            targets = {name: labels[name][batch].to(DEVICE) for name in VALUES}
            losses = [cross_entropy(logits[name], targets[name], ignore_index=NO_LABEL) for name in VALUES]
            loss = torch.stack(losses).nansum()  # NaN for an attribute without any label in the batch
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            progress.update()
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    progress.close()


def mirrored_at_random(pictures: Tensor) -> Tensor:
    """Mirror each picture with probability 1/2, because the models are trained on mirrored pictures too."""
    mirrored = torch.rand(len(pictures), 1, 1, 1) < 0.5
    return torch.where(mirrored, pictures.flip(-1), pictures)


def to_labels(attributes: Sequence[Mapping[str, str]]) -> dict[str, Tensor]:
    """Return the index of each picture's value, (n,), by attribute; NO_LABEL for an attribute that is not visible."""
    return {
        name: torch.tensor([values.index(visible[name]) if name in visible else NO_LABEL for visible in attributes])
        for name, values in VALUES.items()
    }


@torch.no_grad()
def predict(classifier: AttributeClassifier, pictures: Tensor) -> list[dict[str, str]]:
    """Return the most likely value of each attribute for each picture."""
    logits = [classifier(batch.to(DEVICE)) for batch in pictures.split(BATCH_SIZE)]
    columns = {name: torch.cat([of_batch[name] for of_batch in logits]).argmax(1).tolist() for name in VALUES}
    return [{name: VALUES[name][columns[name][row]] for name in VALUES} for row in range(len(pictures))]


def accuracies(
    predicted: Sequence[Mapping[str, str]], expected: Sequence[Mapping[str, str]]
) -> dict[str, dict[str, float]]:
    """Compare the predicted attributes of pictures with the expected ones, each and "all" together.

    Returns:
        {"told": number of pictures with an expected value, "accuracy": fraction of them predicted correctly}
    """
    hits: dict[str, list[bool]] = {name: [] for name in VALUES}
    for of_picture, attributes in zip(predicted, expected, strict=True):
        for name, value in attributes.items():
            hits[name].append(of_picture[name] == value)
    hits["all"] = [hit for of_attribute in hits.values() for hit in of_attribute]
    return {name: {"told": len(row), "accuracy": sum(row) / len(row)} for name, row in hits.items() if row}


def print_table(result: Mapping[str, Any]) -> None:
    """Print the accuracies in per cent, one attribute per line."""
    columns = [name for name in ("real", "real_by_captions", "samples") if name in result]
    print(f"{'':12}" + "".join(f"{name:>18}" for name in columns))
    for name in (*VALUES, "all"):
        cells = [result[column].get(name) for column in columns]
        texts = ["-" if cell is None else f"{100 * cell['accuracy']:.1f} of {cell['told']}" for cell in cells]
        print(f"{name:12}" + "".join(f"{text:>18}" for text in texts))


if __name__ == "__main__":
    main()

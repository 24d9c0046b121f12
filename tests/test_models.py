"""The networks: their shapes and counts, the baseline's arithmetic, and torchvision's weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.dataset import Dataset
from training.models import MODELS, Classifier, PixelSimilarity, build
from training.resnet import ResNet18, load_torchvision_weights


def parameters(model: str, outputs: int) -> int:
    """How many trainable numbers a network has."""
    return sum(p.numel() for p in build(model, outputs, standardise=False).parameters())


@pytest.mark.parametrize(
    ("model", "outputs", "count"),
    [
        ("linear", 1, 785),
        ("mlp", 1, 784 * 30 + 30 + 30 + 1),
        ("mlp_deep", 1, 200960 + 32896 + 8256 + 2080 + 33),
        # torchvision's resnet18 has 11,689,512 with 1000 classes and a 3-channel stem.
        ("resnet18", 1000, 11_689_512 - 2 * 64 * 49),
    ],
)
def test_a_network_has_the_published_number_of_parameters(
    model: str, outputs: int, count: int
) -> None:
    assert parameters(model, outputs) == count


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("classes", [2, 10])
def test_every_classifier_gives_probabilities_and_their_largest(model: str, classes: int) -> None:
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    classifier = Classifier(build(model, classes, standardise=True), one_logit=False).eval()
    probabilities, labels = classifier(images)
    assert probabilities.shape == (5, classes)
    assert probabilities.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.allclose(probabilities.sum(1), torch.ones(5))
    assert torch.equal(labels, probabilities.argmax(1))


def test_one_logit_is_the_second_class_s_and_the_first_gets_the_rest() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[2.0], [-1.0]])

    probabilities, labels = Classifier(Fixed(), one_logit=True)(torch.zeros(2, 28, 28))
    assert torch.allclose(probabilities[:, 1], torch.tensor([2.0, -1.0]).sigmoid())
    assert torch.allclose(probabilities.sum(1), torch.ones(2))
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("rmse", [False, True])
def test_pixel_similarity_takes_the_class_whose_mean_is_nearest(
    digits_3_7: Dataset, rmse: bool
) -> None:
    train, valid = digits_3_7.train, digits_3_7.valid
    body = PixelSimilarity(2, rmse=rmse)
    body.fit(torch.from_numpy(train.images), torch.from_numpy(train.labels))
    means = np.stack([train.images[train.labels == label].mean(0) / 255 for label in (0, 1)])
    pixels = valid.images[:, None] / 255.0
    difference = pixels - means  # (N, 2, 28, 28)
    distance = (difference**2 if rmse else abs(difference)).mean((2, 3))
    logits = body(torch.from_numpy(pixels).float())
    assert logits.argmax(1).tolist() == distance.argmin(1).tolist()


def test_torchvision_weights_answer_alike_on_grey_images_through_one_channel() -> None:
    torch.manual_seed(0)
    three = ResNet18(10)
    three.conv1 = torch.nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    one = ResNet18(10)
    load_torchvision_weights(one, three.state_dict())
    one.fc.load_state_dict(three.fc.state_dict())
    grey = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        expected, actual = three.eval()(grey.expand(-1, 3, -1, -1)), one.eval()(grey)
    assert torch.allclose(expected, actual, atol=1e-5)


def test_the_parameter_names_are_torchvision_s() -> None:
    names = set(ResNet18(10).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "fc.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer4.1.bn2.num_batches_tracked"} <= names
    assert len(names) == 122  # as torchvision.models.resnet18().state_dict()


@pytest.mark.parametrize("change", ["remove", "add"])
def test_weights_of_another_network_are_refused_naming_a_key(change: str) -> None:
    state = ResNet18(10).state_dict()
    if change == "remove":
        del state["layer3.0.conv1.weight"]
    else:
        state["layer5.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"layer3.0.conv1.weight|layer5.weight"):
        load_torchvision_weights(ResNet18(10), state)

"""A loaded model that answers for images: which class, how sure, and which places speak for it.

Nothing is written to a classifier after it is made, and neither its answers nor its maps leave
anything behind in the network, so any number of threads may ask one at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cervicyte.errors import UsageError
from cervicyte.evaluation.answers import Answerer, Prediction
from cervicyte.evaluation.predictions import BATCH
from cervicyte.explanation import cam
from cervicyte.explanation.controls import class_maps, network_input
from cervicyte.explanation.verdict import Verdict, verdicts
from cervicyte.images.statistics import image_statistics
from cervicyte.inference.choice import engine_for
from cervicyte.inference.engines import Precision
from cervicyte.network.heads import load_with_head
from cervicyte.network.model_file import ModelFile, weights_hash


class Classifier:
    """A model with its preprocessing, ready on a device.

    Attributes:
        model: what travelled in the model file; its network lies on `device`, in evaluation mode.
        device: where the network computes.
        answerer: what turns the network's output into answers.
        engine: what computes the network for `predict` and `predict_with_maps`.
    """

    def __init__(
        self,
        model: ModelFile,
        device: str = "auto",
        engine: str = "torch",
        precision: Precision = "float32",
        weights_sha256: str = "",
    ) -> None:
        """Move the network to a device as PyTorch names it; `auto` is a CUDA device if there is one.

        `engine` and `precision` are those of `choice.engine_for`; `weights_sha256` is `weights_hash` of the
        network, where that is known.

        Raises:
            UsageError: there is no such device, engine or precision here, or the engine is wrong.
            CalibrationError, FamiliarityError: what the model carries to answer by is damaged.
        """
        self.model = model
        self.answerer = Answerer.of(model)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            model.network.eval().to(self.device, memory_format=torch.channels_last)
        # An unknown name is a RuntimeError; a build of PyTorch without CUDA asserts.
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"There is no device {device!r} here; choose cpu or auto.") from error
        self._weights_sha256 = weights_sha256
        self.engine = engine_for(model, engine, precision, lambda: self.weights_sha256)

    @classmethod
    def from_file(
        cls,
        path: Path,
        device: str = "auto",
        engine: str = "torch",
        precision: Precision = "float32",
        head: str | None = None,
    ) -> Classifier:
        """Load a model file of ours, `.safetensors` or `.pth`, or of the original notebook.

        `head` is the class list to answer in, of a model that has several, see `network.heads`.

        Raises:
            ModelFileError: the file is missing, damaged, or no model.
            UsageError: there is no such head, device, engine or precision here, or the engine is wrong.
        """
        model = load_with_head(path, head)
        return cls(model, device, engine, precision, model.sha256_as_read)

    @property
    def weights_sha256(self) -> str:
        """See `weights_hash`; a classifier's weights stay as they are, so that they are hashed once."""
        if not self._weights_sha256:
            self._weights_sha256 = weights_hash(self.model.network)
        return self._weights_sha256

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the model's order."""
        return self.model.class_names

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Return one prediction an image, in order; images are uint8 [H, W, 3], RGB, of any sizes.

        Raises:
            ValueError: an image is not an array as described.
        """
        predictions: list[Prediction] = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            predictions += self.answer(self.preprocessed(batch), self.statistics(batch))
        return predictions

    def preprocessed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return what the engine takes, uint8 [N, S, S, 3], of images uint8 [H, W, 3], RGB, of any sizes."""
        return np.stack([self.model.preprocessing(image) for image in images])

    def statistics(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return what an answer goes by of images as read, [N, statistics]; empty if the model needs none."""
        asked_for = images if self.answerer.familiarity is not None else ()
        return np.array([image_statistics(image) for image in asked_for])

    def answer(self, preprocessed: np.ndarray, statistics: np.ndarray) -> list[Prediction]:
        """Return one prediction an image, of at most `BATCH` that are `preprocessed`, with `statistics`."""
        output = self.engine.run(preprocessed)
        return self.answerer.predictions(output.logits, output.means, statistics)

    def predict_with_maps(self, image: np.ndarray) -> tuple[Prediction, dict[str, np.ndarray]]:
        """Return the prediction for an image and every class's map, by one forward pass of the engine.

        The maps are those of `explain` at the network's last layer by Grad-CAM, which there needs no
        gradient: class -> float32 [H, W], none negative.

        Args:
            image: uint8 [H, W, 3], RGB.
        """
        output = self.engine.run(self.preprocessed([image]), evidence=True)
        assert output.evidence is not None
        (prediction,) = self.answerer.predictions(output.logits, output.means, self.statistics([image]))
        return prediction, self._onto_original(image, self.class_names, output.evidence[0].clip(min=0))

    def explain(
        self,
        image: np.ndarray,
        classes: Sequence[str] | None = None,
        layer: str = cam.DEFAULT_LAYER,
        method: str = cam.DEFAULT_METHOD,
    ) -> dict[str, np.ndarray]:
        """Return class -> map of the places that speak for it, on the original's pixels.

        Args:
            image: uint8 [H, W, 3], RGB.
            classes: names; None is every class in order.
            layer: of `model.network.layers`.
            method: one of `cam.METHODS`.

        Returns:
            float32 [H, W] each, none negative, in units of the method: comparable between the classes
            of one image, see `cam.explain`.

        Raises:
            UsageError: unknown class, layer or method.
            ValueError: the image is not an array as described.
        """
        names = self.class_names if classes is None else tuple(classes)
        network = self.model.network
        indices = [self._index(name) for name in names]
        maps = cam.explain(network, self._input([image]), method, [layer], indices)[layer][0]
        return self._onto_original(image, names, maps.cpu().numpy())

    def judge(
        self,
        preprocessed: np.ndarray,
        class_name: str,
        layer: str = cam.DEFAULT_LAYER,
        method: str = cam.DEFAULT_METHOD,
    ) -> Verdict:
        """Return whether the map of one class beats the controls on one image, see `verdict`.

        This takes `verdict.FORWARD_PASSES` images through the network, so that an explanation should be
        shown first; one image, where the network gives the class too little probability for a test.

        Args:
            preprocessed: the image as `model.preprocessing` leaves it, uint8 [S, S, 3].
            class_name, layer, method: of the map, as in `explain`.

        Raises:
            UsageError: unknown class, layer or method.
        """
        wanted = [self._index(class_name)]
        inputs = preprocessed[np.newaxis]
        maps = class_maps(self.model.network, self.model, inputs, wanted, (method,), (layer,))
        return verdicts(self.model, inputs, maps[method, layer], wanted, method, layer)[0]

    def _onto_original(
        self, image: np.ndarray, names: Sequence[str], maps: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Lay maps [classes, h, w] over the pixels of an image [H, W, 3]."""
        height, width = image.shape[:2]
        onto_original = self.model.preprocessing.onto_original
        return {name: onto_original(values, height, width) for name, values in zip(names, maps, strict=True)}

    def _index(self, class_name: str) -> int:
        if class_name not in self.class_names:
            raise UsageError(f"There is no class {class_name!r}; choose from {', '.join(self.class_names)}.")
        return self.class_names.index(class_name)

    def _input(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return the network's input, float32 [N, 3, S, S], on its device."""
        return network_input(self.model, self.preprocessed(images))

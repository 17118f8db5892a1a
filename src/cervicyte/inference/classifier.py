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
from cervicyte.evaluation.features import stage_means
from cervicyte.evaluation.predictions import BATCH
from cervicyte.explanation import cam
from cervicyte.explanation.controls import class_maps, network_input
from cervicyte.explanation.verdict import Verdict, verdicts
from cervicyte.images.statistics import image_statistics
from cervicyte.network.model_file import ModelFile, load_model_file


class Classifier:
    """A model with its preprocessing, ready on a device.

    Attributes:
        model: what travelled in the model file; its network lies on `device`, in evaluation mode.
        device: where the network computes.
        answerer: what turns the network's output into answers.
    """

    def __init__(self, model: ModelFile, device: str = "auto") -> None:
        """Move the network to a device as PyTorch names it; `auto` is a CUDA device if there is one.

        Raises:
            UsageError: there is no such device here.
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

    @classmethod
    def from_file(cls, path: Path, device: str = "auto") -> Classifier:
        """Load a model file of ours, `.safetensors` or `.pth`, or of the original notebook.

        Raises:
            ModelFileError: the file is missing, damaged, or no model.
            UsageError: there is no such device here.
        """
        return cls(load_model_file(path), device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the model's order."""
        return self.model.class_names

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Return one prediction an image, in order; images are uint8 [H, W, 3], RGB, of any sizes.

        Raises:
            ValueError: an image is not an array as described.
        """
        predictions: list[Prediction] = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            means = stage_means(self.model.network, self._input(batch))
            logits = self.model.network.fc(means["stage4"]).float().cpu().numpy()
            features = {stage: values.float().cpu().numpy() for stage, values in means.items()}
            asked_for = batch if self.answerer.familiarity is not None else ()
            statistics = np.array([image_statistics(image) for image in asked_for])
            predictions += self.answerer.predictions(logits, features, statistics)
        return predictions

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
        height, width = image.shape[:2]
        onto_original = self.model.preprocessing.onto_original
        return {
            name: onto_original(values, height, width)
            for name, values in zip(names, maps.cpu().numpy(), strict=True)
        }

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

    def _index(self, class_name: str) -> int:
        if class_name not in self.class_names:
            raise UsageError(f"There is no class {class_name!r}; choose from {', '.join(self.class_names)}.")
        return self.class_names.index(class_name)

    def _input(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return the network's input, float32 [N, 3, S, S], on its device."""
        return network_input(self.model, np.stack([self.model.preprocessing(image) for image in images]))

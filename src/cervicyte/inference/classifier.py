"""A loaded model that answers for images: which class, how sure, and which places speak for it.

Nothing is written to a classifier after it is made, and neither its answers nor its maps leave
anything behind in the network, so any number of threads may ask one at once.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cervicyte.errors import UsageError
from cervicyte.evaluation.answers import Answerer, Prediction, answers_and_output
from cervicyte.evaluation.predictions import BATCH, softmax
from cervicyte.explanation import cam
from cervicyte.explanation.verdict import Verdict, verdicts
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.statistics import image_statistics
from cervicyte.inference.choice import GRAPH_ENGINES, TORCH, engine_for, reason_in_short, usual_engine
from cervicyte.inference.engines import Precision
from cervicyte.network.description import layers_of
from cervicyte.network.frozen import FrozenModel, is_graph, load_described, torch_is_installed
from cervicyte.network.graph import Output

if TYPE_CHECKING:
    from cervicyte.network.model_file import ModelFile


class Classifier:
    """A model with its preprocessing, ready on a device.

    Attributes:
        model: what travelled in the model file. A network, if it has one, lies on `device`, in evaluation
            mode; of a `FrozenModel` the engine alone computes it.
        device: where the network computes, as PyTorch names it.
        answerer: what turns the network's output into answers.
        engine: what computes the network for `predict`, and for maps at the last layer.
    """

    def __init__(
        self,
        model: ModelFile | FrozenModel,
        device: str = "auto",
        engine: str | None = None,
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
        self.device = _ready(model, device)
        self._weights_sha256 = weights_sha256
        self.engine = engine_for(model, engine, precision, lambda: self.weights_sha256)
        self._with_gradients = None if isinstance(model, FrozenModel) else model
        self._loading = threading.Lock()

    @classmethod
    def from_file(
        cls,
        path: Path,
        device: str = "auto",
        engine: str | None = None,
        precision: Precision = "float32",
        head: str | None = None,
    ) -> Classifier:
        """Load a model file of ours, `.safetensors` or `.pth`, or of the original notebook, or a graph.

        With another engine than torch, and where torch is not installed, torch is not even imported, unless
        maps are asked for that need it.

        `head` is the class list to answer in, of a model that has several, see `network.heads`.

        Raises:
            ModelFileError: the file is missing, damaged, or no model.
            UsageError: there is no such head, device, engine or precision here, or the engine is wrong.
        """
        model = load_described(path, engine in GRAPH_ENGINES and device in ("auto", "cpu"))
        if head is not None and model.metadata.get("head") != head:  # to change places takes torch
            if is_graph(path):
                raise UsageError(
                    f"--head {head}: {path} is a graph, which has one class list; leave the option out."
                )
            from cervicyte.network.heads import load_with_head, with_head

            model = load_with_head(path, head) if isinstance(model, FrozenModel) else with_head(model, head)
        known = model.weights_sha256 if isinstance(model, FrozenModel) else model.sha256_as_read
        return cls(model, device, engine, precision, known)

    @classmethod
    def as_usual(cls, path: Path, precision: Precision = "float32", head: str | None = None) -> Classifier:
        """Load a model file with the engine of `choice.usual_engine`, or with torch where that is wrong.

        Arguments and errors as of `from_file`.
        """
        usual = usual_engine(path)
        if usual is None:
            return cls.from_file(path, precision=precision, head=head)
        try:
            return cls.from_file(path, engine=usual, precision=precision, head=head)
        except UsageError as error:
            loaded = cls.from_file(path, precision=precision, head=head)
            loaded.engine.notes = (f"{TORCH} answers, since {reason_in_short(error, usual)}.",)
            return loaded

    @property
    def weights_sha256(self) -> str:
        """See `weights_hash`; a classifier's weights stay as they are, so that they are hashed once."""
        if not self._weights_sha256:
            self._weights_sha256 = self.model.weights_sha256
        return self._weights_sha256

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever reads the answers must know, a sentence each: of the model, and of its engine."""
        return (*self.answerer.notes, *self.engine.notes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the model's order."""
        return self.model.class_names

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Return one prediction an image, in order; images are uint8 [H, W, 3], RGB, of any sizes.

        Raises:
            UsageError: an image is not an array as described.
        """
        return [prediction for prediction, _ in self.answered(images, evidence=False)]

    def answered(
        self, images: Sequence[np.ndarray], evidence: bool
    ) -> list[tuple[Prediction, np.ndarray | None]]:
        """Return one prediction an image and, if it is asked for, its evidence, by the pass that answered it.

        Args:
            images: as in `predict`.
            evidence: whether what `maps_of` needs is wanted, float32 [C, h, w] each; else None.

        Raises:
            UsageError: an image is not an array as described.
        """
        _refuse_others(images)
        found: list[tuple[Prediction, np.ndarray | None]] = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            run = functools.partial(self.engine.run, evidence=evidence)
            predictions, output = answers_and_output(
                self.answerer, run, self.preprocessed(batch), batch, self.statistics(batch)
            )
            nothing: list[np.ndarray | None] = [None] * len(batch)
            found += zip(predictions, nothing if output.evidence is None else output.evidence, strict=True)
        return found

    def look_again(self, inputs: np.ndarray) -> np.ndarray:
        """Return the logits of images, preprocessed: what `Answerer.predictions` asks for."""
        return self.engine.run(inputs).logits

    def maps_of(
        self,
        image: np.ndarray,
        evidence: np.ndarray,
        prediction: Prediction,
        classes: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return what `explain` does for maps `in_one_pass`, of an image `answered` with evidence."""
        names = self.class_names if classes is None else tuple(classes)
        values = evidence[[self._index(name) for name in names]].clip(min=0)
        return _onto_original(self.seen_through(prediction), image, names, values)

    def seen_through(self, prediction: Prediction) -> Preprocessing:
        """Return what an image went through for its answer."""
        return self.answerer.seen_through(self.model, prediction)

    def preprocessed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return what the engine takes, uint8 [N, S, S, 3], of images uint8 [H, W, 3], RGB, of any sizes."""
        return np.stack([self.model.preprocessing(image) for image in images])

    def statistics(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return what an answer goes by of images as read, [N, statistics]; empty if the model needs none."""
        asked_for = images if self.answerer.familiarity is not None else ()
        return np.array([image_statistics(image) for image in asked_for])

    def predict_with_maps(self, image: np.ndarray) -> tuple[Prediction, dict[str, np.ndarray]]:
        """Return the prediction for an image and every class's map, by one forward pass of the engine.

        The maps are those of `explain` at the network's last layer by Grad-CAM, which there needs no
        gradient: class -> float32 [H, W], none negative.

        Args:
            image: uint8 [H, W, 3], RGB.
        """
        ((prediction, evidence),) = self.answered([image], evidence=True)
        assert evidence is not None
        return prediction, self.maps_of(image, evidence, prediction)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of the network at which `explain` has maps, in the order of computation."""
        return layers_of(self.model.placement) if self._has_gradients else self.model.layers

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods by which `explain` has maps, of `cam.METHODS`."""
        return tuple(cam.METHODS) if self._has_gradients else cam.AT_THE_LAST

    @property
    def default_layer(self) -> str:
        """Where `explain` looks unless told: with another engine than torch, where that gives the maps."""
        return cam.DEFAULT_LAYER if self.engine.name == TORCH else self.model.layers[-1]

    def check_map(self, layer: str, method: str) -> None:
        """Refuse maps that cannot be had.

        Raises:
            UsageError: there is no such layer or method, or it needs torch or a network that is not here.
        """
        cam.method_named(method)
        known = layers_of(self.model.placement)
        if layer not in known:
            raise UsageError(f"There is no layer {layer!r} in this network; choose from {', '.join(known)}.")
        if not self._has_gradients and not self.in_one_pass(layer, method):
            raise UsageError(
                f"Maps by {method} at {layer} need the gradients of a model file and torch; here there are "
                f"maps by {' and '.join(cam.AT_THE_LAST)} at {self.model.layers[-1]}."
            )

    def in_one_pass(self, layer: str, method: str) -> bool:
        """Return whether the engine gives maps together with the answer, without any gradient."""
        return self.engine.name != TORCH and layer == self.model.layers[-1] and method in cam.AT_THE_LAST

    def explain(
        self,
        image: np.ndarray,
        classes: Sequence[str] | None = None,
        layer: str | None = None,
        method: str = cam.DEFAULT_METHOD,
        *,
        prediction: Prediction | None = None,
    ) -> dict[str, np.ndarray]:
        """Return class -> map of the places that speak for it, on the original's pixels.

        Args:
            image: uint8 [H, W, 3], RGB.
            classes: names; None is every class in order.
            layer: of `layers`; None is `default_layer`.
            method: of `methods`.
            prediction: of the image, if it is at hand: else it is made anew, where a second look at the image
                is possible, since the maps are of the look that gave the answer.

        Returns:
            float32 [H, W] each, none negative, in units of the method: comparable between the classes
            of one image, see `cam.explain`.

        Raises:
            UsageError: unknown class, layer or method, maps that cannot be had here, or the image is not an
                array as described.
        """
        _refuse_others([image])
        names = self.class_names if classes is None else tuple(classes)
        layer = layer or self.default_layer
        self.check_map(layer, method)
        if prediction is None and self.answerer.has_second_look(image):
            prediction = self.predict([image])[0]
        seen = self.model.preprocessing if prediction is None else self.seen_through(prediction)
        maps = self._maps(seen(image)[np.newaxis], [self._index(name) for name in names], layer, method)
        return _onto_original(seen, image, names, maps)

    def judge(
        self,
        preprocessed: np.ndarray,
        class_name: str,
        layer: str | None = None,
        method: str = cam.DEFAULT_METHOD,
    ) -> Verdict:
        """Return whether the map of one class beats the controls on one image, see `verdict`.

        This takes `verdict.FORWARD_PASSES` images through the network, so that an explanation should be
        shown first; one image, where the network gives the class too little probability for a test.

        Args:
            preprocessed: the image as `seen_through` leaves it, uint8 [S, S, 3].
            class_name, layer, method: of the map, as in `explain`.

        Raises:
            UsageError: unknown class, layer or method, or maps that cannot be had here.
        """
        layer = layer or self.default_layer
        self.check_map(layer, method)
        wanted, inputs = [self._index(class_name)], preprocessed[np.newaxis]
        maps = self._maps(inputs, wanted, layer, method)
        if isinstance(self.model, FrozenModel) and self.in_one_pass(layer, method):
            return verdicts(self.model, inputs, maps, wanted, method, layer, self.probabilities)[0]
        return verdicts(self.torch_model(), inputs, maps, wanted, method, layer)[0]

    def probabilities(self, preprocessed: np.ndarray) -> np.ndarray:
        """Return the network's own probabilities, float64 [N, C], of uint8 [N, S, S, 3], preprocessed."""
        found = [np.empty((0, len(self.class_names)))]
        for start in range(0, len(preprocessed), BATCH):
            found.append(softmax(self.engine.run(preprocessed[start : start + BATCH]).logits))
        return np.concatenate(found)

    def _maps(self, inputs: np.ndarray, classes: Sequence[int], layer: str, method: str) -> np.ndarray:
        """Return the maps of one preprocessed image [1, S, S, 3], float32 [classes, h, w]."""
        if self.in_one_pass(layer, method):
            output: Output = self.engine.run(inputs, evidence=True)
            assert output.evidence is not None
            return output.evidence[0][list(classes)].clip(min=0)
        from cervicyte.explanation.controls import network_input

        model = self.torch_model()
        maps = cam.explain(model.network, network_input(model, inputs), method, [layer], classes)
        found: np.ndarray = maps[layer][0].cpu().numpy()
        return found

    @property
    def _has_gradients(self) -> bool:
        if self._with_gradients is not None:
            return True
        assert isinstance(self.model, FrozenModel)
        return torch_is_installed() and not isinstance(self.model.source, Path)

    def torch_model(self) -> ModelFile:
        """Return the model with its network, which is loaded once if its weights were read without torch."""
        with self._loading:
            if self._with_gradients is None:
                from cervicyte.network.model_file import load_model_file

                assert isinstance(self.model, FrozenModel)
                self._with_gradients = load_model_file(self.model.path)
            return self._with_gradients

    def _index(self, class_name: str) -> int:
        if class_name not in self.class_names:
            raise UsageError(f"There is no class {class_name!r}; choose from {', '.join(self.class_names)}.")
        return self.class_names.index(class_name)


def _onto_original(
    seen: Preprocessing, image: np.ndarray, names: Sequence[str], maps: np.ndarray
) -> dict[str, np.ndarray]:
    """Lay maps [classes, h, w] over the pixels of an image [H, W, 3]."""
    height, width = image.shape[:2]
    laid = (seen.onto_original(values, height, width) for values in maps)
    return dict(zip(names, laid, strict=True))


def _refuse_others(images: Any) -> None:
    """Refuse what is no sequence of images, uint8 [H, W, 3]."""
    if isinstance(images, str | bytes) or not isinstance(images, Sequence | np.ndarray):
        found: str | None = f"a {type(images).__name__}"
    elif isinstance(images, np.ndarray) and images.ndim < 4:
        found = f"one array {images.dtype} {list(images.shape)}"
    else:
        found = next(filter(None, map(_other_than_image, images)), None)
    if found is not None:
        raise UsageError(
            f"RGB images are needed, uint8 arrays [H, W, 3] in a list, not {found}; "
            "cervicyte.images.reader.read_image makes such an array of a file."
        )


def _other_than_image(image: Any) -> str | None:
    """Return what is there instead of an image, uint8 [H, W, 3]; None if it is one."""
    if not isinstance(image, np.ndarray):
        return f"a {type(image).__name__} in it"
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        return f"{image.dtype} {list(image.shape)} in it"
    return None


def _ready(model: ModelFile | FrozenModel, device: str) -> str:
    """Move the network to a device, and return the device's name."""
    if isinstance(model, FrozenModel):
        if device not in ("auto", "cpu"):
            raise UsageError(f"{model.path}: is computed on the processor here; choose cpu or auto.")
        return "cpu"
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model.network.eval().to(torch.device(device), memory_format=torch.channels_last)
    # An unknown name is a RuntimeError; a build of PyTorch without CUDA asserts.
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"There is no device {device!r} here; choose cpu or auto.") from error
    return device

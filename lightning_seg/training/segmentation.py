"""What the methods for segmentation share: classes, scores and predictions."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_one_of, require_range
from lightning_seg.inference import Predictor
from lightning_seg.losses import CrossEntropy, WeightedSum, fit_pixel_loss
from lightning_seg.networks import LRASPP
from lightning_seg.networks.encoder_head import EncoderHead
from lightning_seg.networks.outputs import read_outputs, require_logits
from lightning_seg.numerics import at_least_float32
from lightning_seg.training.class_weights import ClassWeights, Counted
from lightning_seg.training.evaluation import Evaluation, Extent
from lightning_seg.training.method import MethodModule
from lightning_seg.training.prediction import predicted
from lightning_seg.views import VOID, ClassView, ColorView, ScaleView, Views, correctness


class SegmentationModule(MethodModule, ABC):
    """Base of the methods for segmentation; a method adds its losses in `training_step`.

    Args:
        network: The network, or a function from the number of classes to it, such as a class. It
            takes normalised (B, 3, H, W) images. It returns (B, C, H, W) logits, a dict with the
            logits `out` and, for deep supervision, `aux` (one tensor or a list), or an output of
            HuggingFace, whose `logits` are resized. Networks of other libraries are named like
            classes, too: see `NamedNetwork`. None takes `LRASPP` on a MobileNetV3 with random
            weights.
        num_classes: Number of classes C, without void.
        class_names: One name per class, for logs and tables; None takes `class_0`, `class_1`, ...
        palette: One RGB colour in 0..255 per class, for pictures; None takes Pascal VOC's.
        ignore_index: Mask value of void pixels, which count neither in a loss nor in a score.
        pixel_loss: The loss of pixels, a module (logits, class ids) -> scalar such as a loss of
            segmentation_models_pytorch, or a `WeightedSum` of several. It gets `ignore_index` by
            itself. None takes `CrossEntropy`.
        class_weights: Weights of the classes in the cross-entropy: one number per class, at least
            0, or `balanced` or `effective`, which are counted from the training labels. `balanced`
            weighs by the inverse number of pixels, `effective` by the inverse effective number of
            images (arXiv 1901.05555) with beta 0.999. A class that no label shows gets the weight
            0. None weighs all classes equally.
        lambda_aux: Weight of the loss of the auxiliary logits, at least 0.
        val_scores: Scores of the validations during `fit`. `miou` is the loss and the scores of the
            confusion matrix, `boundary` adds `boundary_iou` and `trimap_iou_3`, and `all` adds
            `trimap_iou_<r>` for r = 1, 5, 10 and 20, `boundary_f` and the calibration error `ece`.
            `validate` and `test` measure all of them. Default chosen here: `boundary` lengthens a
            validation by about 2 %.
        checkpoint_classes: Effect of a checkpoint whose class names differ from `class_names`.
            `refuse` raises an error, `rename` keeps the order of the checkpoint's classes under
            the new names, `reorder` brings its classes into the new order by their names.
        options: Arguments of `MethodModule`.

    Attributes:
        loss: The loss of pixels: (B, C, H, W) logits and (B, H, W) class ids -> scalar.
        own_terms: Names of the losses that a method logs as `loss_<name>`, which no term of a
            `WeightedSum` may have.
        evaluated: The scores of the last validation or test, as `Evaluation.compute` returns them.
        predictor: How the network sees the images of validation, test and prediction: whole, in
            windows, or in several copies. By default whole.
        keeps_probabilities: Whether predictions also hold the probabilities of the classes.
        log_odds: A function from (B, C, H, W) logits to the (B, H, W) log-odds of a confidence,
            which predictions of whole images then hold, too; None by default.

    Raises:
        SetupError: Two settings contradict each other, or the data has no classes.
    """

    needs = ("mask", "it trains on whole images with masks", "data.patches null")
    loss: nn.Module
    own_terms: ClassVar[tuple[str, ...]] = ()
    keeps_probabilities = False
    log_odds: Callable[[Tensor], Tensor] | None = None

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        class_names: list[str] | None = None,
        palette: list[list[int]] | None = None,
        ignore_index: int = 255,
        pixel_loss: nn.Module | None = None,
        class_weights: list[float] | Counted | None = None,
        lambda_aux: float = 0.4,
        val_scores: Extent = "boundary",
        checkpoint_classes: Literal["refuse", "rename", "reorder"] = "refuse",
        **options: Any,
    ) -> None:
        if num_classes < 1:
            raise SetupError(
                f"{type(self).__name__} trains on masks, and the data has no classes",
                option="data",
            )
        for name, values in {"class_names": class_names, "palette": palette}.items():
            if values is not None and len(values) != num_classes:
                raise SetupError(f"{len(values)} {name} for {num_classes} classes", option=name)
        require_range(0, math.inf, lambda_aux=lambda_aux)
        require_one_of("miou", "boundary", "all", val_scores=val_scores)
        require_one_of("refuse", "rename", "reorder", checkpoint_classes=checkpoint_classes)
        build = LRASPP if network is None else network
        super().__init__(build if isinstance(build, nn.Module) else build(num_classes), **options)
        self.num_classes = num_classes
        self.class_names = class_names or [f"class_{index}" for index in range(num_classes)]
        self.palette = palette
        self.ignore_index = ignore_index
        self.lambda_aux = lambda_aux
        self.checkpoint_classes = checkpoint_classes
        self._channels: list[int] | None = None
        self.val_scores = val_scores
        self.val_evaluation = Evaluation(num_classes, ignore_index)
        self.test_evaluation = Evaluation(num_classes, ignore_index)
        self.evaluated: dict[str, Tensor] = {}
        self.predictor = Predictor()
        self._class_weights = ClassWeights(class_weights, num_classes)
        self.use_loss(CrossEntropy(ignore_index) if pixel_loss is None else pixel_loss)

    def use_loss(self, loss: nn.Module) -> None:
        """Set the loss of pixels, after a trial on a small batch; see `fit_pixel_loss`.

        Args:
            loss: A module: (B, C, H, W) logits and (B, H, W) class ids -> scalar.

        Raises:
            SetupError: The loss does not fit, or a term of a sum has a name that is in use.
        """
        for name in loss.names if isinstance(loss, WeightedSum) else ():
            if name in (*self.own_terms, "main", "aux"):
                raise SetupError(
                    f"{type(self).__name__} logs a `loss_{name}` of its own: give the term `{name}`"
                    " of the loss another name",
                    option="pixel_loss.losses",
                )
        self.loss = fit_pixel_loss(loss, self.num_classes, self.ignore_index)
        self._class_weights.enter(self.loss)

    def setup(self, stage: str) -> None:
        """Count the weights of the classes before a training, where that was asked for."""
        super().setup(stage)
        if stage == "fit":
            self._class_weights.count(self.trainer.datamodule, self.class_names)  # type: ignore[attr-defined]

    # From raw images to logits

    def outputs(
        self, image: Tensor, network: nn.Module | None = None, full_size: bool = True
    ) -> dict[str, list[Tensor]]:
        """Return the (B, C, H, W) logits of raw images: one `out`, any number of `aux`.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0..255 or floating point in [0, 1].
            network: Another network of the same classes; None takes the one that is trained.
            full_size: False lets a network that can do so return logits (B, C, h, w) of its own
                size, for losses that upsample them block by block.

        Raises:
            SetupError: The network returns something else, other classes or another size.
        """
        network = self.network if network is None else network
        size, name = image.shape[-2:], type(network).__name__
        smaller = not full_size and isinstance(network, EncoderHead)
        options = {"full_size": False} if smaller else {}
        found = read_outputs(network(self.normalize(image), **options), name, size)
        require_logits(found, name, self.num_classes, size, full_size=not smaller)
        return {key: [self._in_order(logits) for logits in each] for key, each in found.items()}

    def outputs_for_loss(self, image: Tensor) -> dict[str, list[Tensor]]:
        """Return `outputs`, smaller than the image where network and loss of pixels can do so."""
        smaller = getattr(self.loss, "takes_smaller_logits", False)
        return self.outputs(image, full_size=not smaller)

    def logits_of(self, image: Tensor, network: nn.Module | None = None) -> Tensor:
        """Return (B, C, h, w) logits of raw images, smaller than these where a network can do so.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0..255 or floating point in [0, 1].
            network: Another network of the same classes; None takes the one that is trained.
        """
        return self.outputs(image, network, full_size=False)["out"][0]

    def _in_order(self, logits: Tensor) -> Tensor:
        """Return logits in the order of `class_names`, whatever the order of the channels is."""
        return logits if self._channels is None else logits[:, self._channels]

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, C, H, W) logits of (B, 3, H, W) RGB images, uint8 or in [0, 1]."""
        return self.outputs(image)["out"][0]

    # Training

    def pixel_losses(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss of pixels as `loss`, and each term of a `WeightedSum` as `loss_<name>`.

        Args:
            logits: (B, C, H, W) logits.
            target: (B, H, W) class ids.
        """
        logits = at_least_float32(logits)
        if not isinstance(self.loss, WeightedSum):
            return {"loss": self.loss(logits, target)}
        terms = self.loss.terms(logits, target)
        shown = {f"loss_{name}": term.detach() for name, term in terms.items()}
        return {"loss": self.loss.total(terms), **shown}

    def supervised_losses(
        self, outputs: dict[str, list[Tensor]], target: Tensor
    ) -> dict[str, Tensor]:
        """Return the total `loss`, and `loss_main` and `loss_aux` where there are auxiliary logits.

        A `WeightedSum` adds each of its terms as `loss_<name>`, before the term's weight and
        together with those of the auxiliary logits.

        Args:
            outputs: The logits that `outputs` returned.
            target: (B, H, W) class ids.
        """
        main = self.pixel_losses(outputs["out"][0], target)
        if not outputs["aux"]:
            return main
        every = [self.pixel_losses(logits, target) for logits in outputs["aux"]]
        aux = {name: torch.stack([each[name] for each in every]).sum() for name in main}
        both = {name: main[name] + self.lambda_aux * aux[name] for name in main}
        return {**both, "loss_main": main["loss"].detach(), "loss_aux": aux["loss"].detach()}

    # Evaluation and prediction

    def on_validation_epoch_start(self) -> None:
        """Choose what the validation measures."""
        fitting = self.trainer.state.fn == "fit"
        self.val_evaluation.extent = self.val_scores if fitting else "all"

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Add a validation batch to the scores; return its (B, H, W) predicted class ids."""
        return {"labels": self._evaluate(batch, self.val_evaluation)}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Add a test batch to the scores; return its (B, H, W) predicted class ids."""
        return {"labels": self._evaluate(batch, self.test_evaluation)}

    def on_validation_epoch_end(self) -> None:
        """Log `val/miou`, `val/iou/<class>`, the other scores and `val/loss`."""
        self._log_scores("val", self.val_evaluation)

    def on_test_epoch_end(self) -> None:
        """Log `test/miou`, `test/iou/<class>`, the other scores and `test/loss`."""
        self._log_scores("test", self.test_evaluation)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return `labels`, (B, H, W) uint8 class ids at the size of the images, and the `id`s.

        Where `keeps_probabilities`, `probabilities` are (B, C, H, W) float16. Of an image that the
        batch holds as a `file`, and not as pixels, the result is `strips`, which yields a `Strip`
        of rows after the other.
        """
        return {"id": batch["id"], **predicted(self, batch)}

    # Pictures

    def views(self, batch: dict[str, Any]) -> Views:
        """Return image, truth, prediction, errors and confidence, and the method's own views."""
        image, mask = batch["image"], batch.get("mask")
        logits = self(image)
        confidence, labels = at_least_float32(logits[0]).softmax(0).max(0)  # (C, H, W) -> (H, W)
        views: Views = {"image": ColorView(self.picture(image[0]))}
        if mask is not None:
            void = mask[0] == self.ignore_index
            views["truth"] = ClassView(mask[0].masked_fill(void, VOID))
        views["prediction"] = ClassView(labels)
        if mask is not None:
            views["errors"] = correctness(labels, mask[0], self.ignore_index)
        chance = 1 / self.num_classes
        views["confidence"] = ScaleView(confidence, chance, 1, "probability of the prediction")
        return views | self.own_views(logits, mask)

    def own_views(self, logits: Tensor, mask: Tensor | None) -> Views:
        """Return what this method alone sees in one validation image.

        Args:
            logits: (1, C, H, W) logits of the network.
            mask: (1, H, W) class ids; None where the image has no labels.
        """
        return {}

    def _evaluate(self, batch: dict[str, Any], evaluation: Evaluation) -> Tensor:
        image, target = batch["image"], batch["mask"]
        if self.predictor.plain:
            logits = self.outputs_for_loss(image)["out"][0]
        else:
            logits = self.predictor(self, image)
        logits = at_least_float32(logits)
        # of every image: a loss that pools a batch would depend on which images share one
        losses = [self.loss(logits[i : i + 1], target[i : i + 1]) for i in range(len(target))]
        return evaluation.update(logits, target, torch.stack(losses))

    def _log_scores(self, stage: str, evaluation: Evaluation) -> None:
        self.evaluated = scores = evaluation.compute()
        if stage == "val":
            self.val_confusion = scores["confusion"].cpu()
        # every process holds the same values
        self.log(f"{stage}/miou", scores["miou"], prog_bar=True, sync_dist=True)
        others = {name: value for name, value in scores.items() if value.ndim == 0}
        named = {f"{stage}/{name}": value for name, value in others.items() if name != "miou"}
        named |= {
            f"{stage}/iou/{name}": scores["iou"][i] for i, name in enumerate(self.class_names)
        }
        self.log_dict(named, sync_dist=True)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the class names and counted weights, and the order of the network's channels."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["class_weights"] = self._class_weights.counted
        checkpoint["class_names"] = list(self.class_names)
        checkpoint["class_channels"] = self._channels

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise for a checkpoint of other classes, of another network or input mode."""
        count = checkpoint.get("hyper_parameters", {}).get("num_classes", self.num_classes)
        if count != self.num_classes:
            raise SetupError(
                f"the checkpoint was trained for {count} classes, the data has {self.num_classes} "
                f"({', '.join(self.class_names[:6])}, ...)",
                option=("data", "ckpt_path"),
            )
        self._class_weights.restore(checkpoint.get("class_weights"))
        self._channels = checkpoint.get("class_channels")
        names = checkpoint.get("class_names", self.class_names)
        if names != self.class_names and not (_numbered(names) or _numbered(self.class_names)):
            self._channels = self._channels_of(names)
        super().on_load_checkpoint(checkpoint)

    def _channels_of(self, names: list[str]) -> list[int] | None:
        """Return the network's channel of every class, for a checkpoint with these class names."""
        if self.checkpoint_classes == "rename":
            return self._channels
        place = next(i for i, name in enumerate(names) if name != self.class_names[i])
        differ = f"class {place} is {names[place]!r} there and {self.class_names[place]!r} here"
        if self.checkpoint_classes == "refuse":
            raise SetupError(
                f"the class names of the checkpoint and the data differ: {differ}. `rename` takes "
                "the checkpoint's classes in their order, `reorder` finds them by their names",
                option=("checkpoint_classes rename", "checkpoint_classes reorder"),
            )
        if missing := [name for name in self.class_names if name not in names]:
            raise SetupError(
                f"the checkpoint has no class {', '.join(missing[:5])}; it has {', '.join(names)}",
                option="checkpoint_classes rename",
            )
        known = self._channels or list(range(self.num_classes))
        return [known[names.index(name)] for name in self.class_names]


def labeled_part(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the group `labeled` of a batch of groups, and any other batch as it is."""
    part: dict[str, Any] = batch.get("labeled", batch)
    return part


def _numbered(names: Sequence[str]) -> bool:
    """Return whether class names are the default ones, which say nothing of the order."""
    return list(names) == [f"class_{index}" for index in range(len(names))]

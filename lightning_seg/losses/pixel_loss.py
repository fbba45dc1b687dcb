"""Makes a loss of another library fit: void pixels, and batches in which nothing is labelled."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.losses.weighted_sum import WeightedSum

_TRIED = (2, 4, 4)  # images, height and width of the batch on which a loss is tried


def fit_pixel_loss(
    loss: nn.Module, num_classes: int, ignore_index: int = 255, option: str = "pixel_loss"
) -> nn.Module:
    """Return a loss of pixels that leaves void out, after it was tried on a small random batch.

    The loss, and each loss of a `WeightedSum`, gets `ignore_index` where it has such an attribute
    and the attribute still holds the default of its class. A loss that is not 0 where no pixel is
    labelled, such as a mean over no pixels, is wrapped in `ZeroWithoutLabels`.

    Args:
        loss: A module: (B, C, H, W) logits and (B, H, W) class ids -> scalar.
        num_classes: Number of classes C.
        ignore_index: The class id of void pixels.
        option: The argument that names the loss, for error messages.

    Returns:
        The loss itself, or the loss in a wrapper.

    Raises:
        SetupError: The loss leaves out another class id, cannot take such a batch, returns no
            finite scalar with a gradient, or depends on the logits of void pixels.

    Examples:
        >>> loss = fit_pixel_loss(nn.CrossEntropyLoss(), num_classes=2)
        >>> loss(torch.zeros(1, 2, 1, 2), torch.full((1, 1, 2), 255)).item()
        0.0
    """
    if isinstance(loss, WeightedSum):
        for place, each in enumerate(loss.losses):
            loss.losses[place] = fit_pixel_loss(each, num_classes, ignore_index, option)
        return loss
    _leave_out(loss, ignore_index, option)
    training = loss.training
    loss.eval()  # in training mode a loss may exchange values with other processes
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _tried(loss, num_classes, ignore_index, option)
    finally:
        loss.train(training)


class ZeroWithoutLabels(nn.Module):
    """A loss that is 0, with a zero gradient, where no pixel is labelled.

    The wrapped loss may be NaN there, such as a mean over no pixels, or no scalar. It sees class 0
    instead of void in such a batch, and its value is multiplied by 0; no device is waited for.

    Args:
        loss: A module: (B, C, H, W) logits and (B, H, W) class ids -> scalar.
        ignore_index: The class id of void pixels.
    """

    def __init__(self, loss: nn.Module, ignore_index: int = 255) -> None:
        super().__init__()
        self.loss = loss
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, or 0.

        Args:
            logits: (B, C, H, W), any floating dtype.
            target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.

        Returns:
            A scalar.
        """
        labelled = (target != self.ignore_index).any()  # ()
        target = torch.where(labelled, target, 0)
        found: Tensor = self.loss(logits, target)
        return found * labelled


def _leave_out(loss: nn.Module, ignore_index: int, option: str) -> None:
    """Set the attribute `ignore_index` of a loss and its parts where nobody has set it yet."""
    for part in loss.modules():
        if not hasattr(part, "ignore_index"):
            continue
        parameter = inspect.signature(type(part)).parameters.get("ignore_index")
        default = None if parameter is None else parameter.default
        if part.ignore_index in (None, default):
            setattr(part, "ignore_index", ignore_index)  # noqa: B010
        elif part.ignore_index != ignore_index:
            raise SetupError(
                f"{type(part).__name__} leaves out class id {part.ignore_index}, and void pixels "
                f"have {ignore_index}",
                option=(f"{option}.ignore_index {ignore_index}",),
            )


def _tried(loss: nn.Module, num_classes: int, ignore_index: int, option: str) -> nn.Module:
    """Return a loss, wrapped where it needs it, after trials with more and more void pixels."""
    state = next(iter((*loss.parameters(), *loss.buffers())), torch.zeros(()))
    if state.device.type == "meta":  # no values to try
        return loss
    draw = torch.Generator().manual_seed(0)
    shape = (_TRIED[0], num_classes, *_TRIED[1:])
    logits = torch.randn(shape, generator=draw, device="cpu").to(state.device)
    target = torch.randint(num_classes, _TRIED, generator=draw, device="cpu").to(state.device)
    problem, _, _ = _call(loss, logits, target)
    if problem is not None:
        raise SetupError(f"{type(loss).__name__} is no loss of pixels: {problem}", option=option)

    target[:, 1:3, :2] = ignore_index
    if problem := _influence_of_void(loss, logits, target, ignore_index):
        raise SetupError(
            f"{type(loss).__name__} does not leave out void pixels, which have class id "
            f"{ignore_index}: {problem}",
            option=option,
        )
    target[1] = ignore_index
    if problem := _influence_of_void(loss, logits, target, ignore_index):
        raise SetupError(
            f"{type(loss).__name__} does not take a batch in which one image has no labels: "
            f"{problem}",
            option=option,
        )
    problem, value, gradient = _call(loss, logits, torch.full_like(target, ignore_index))
    if problem is not None or value != 0 or gradient.any():
        return ZeroWithoutLabels(loss, ignore_index)
    return loss


def _influence_of_void(
    loss: nn.Module, logits: Tensor, target: Tensor, ignore_index: int
) -> str | None:
    """Return how void pixels change a loss or make it fail; None where they do neither."""
    void = target == ignore_index  # (B, H, W)
    problem, value, gradient = _call(loss, logits, target)
    if problem is not None:
        return problem
    _, other, _ = _call(loss, logits + 3 * void[:, None] * torch.randn_like(logits), target)
    reached = gradient.abs().amax(1)[void].max()
    if reached > 1e-7 or not torch.isclose(value, other, rtol=1e-4, atol=1e-6):
        return "its value or gradient depends on their logits"
    return None


def _call(
    loss: Callable[[Tensor, Tensor], object], logits: Tensor, target: Tensor
) -> tuple[str | None, Tensor, Tensor]:
    """Return what is wrong with a loss on a batch, its value, and its gradient."""
    logits = logits.clone().requires_grad_()
    nothing = logits.new_zeros(())
    try:
        found = loss(logits, target.clone())
        problem = _problem(found)
        if problem is None:
            (gradient,) = torch.autograd.grad(cast(Tensor, found), logits)
            problem = None if bool(gradient.isfinite().all()) else "its gradient is not finite"
    except Exception as error:  # whatever the code of another library raises
        first = (str(error).strip().splitlines() or [""])[0]
        text = f"{type(error).__name__}: {first}" if first else type(error).__name__
        shapes = f"logits {tuple(logits.shape)} and class ids {tuple(target.shape)}"
        problem = f"it fails for {shapes} with {text}"
    if problem is not None:
        return problem, nothing, nothing
    return None, cast(Tensor, found).detach(), gradient


def _problem(found: object) -> str | None:
    """Return why a value is no loss, for a sentence that names the loss."""
    if not isinstance(found, Tensor):
        return f"it returns a {type(found).__name__}, and a scalar tensor was expected"
    if found.ndim:
        return f"it returns a tensor of shape {tuple(found.shape)}, and a scalar was expected"
    if not found.isfinite():
        return f"it returns {found.item()} for random logits"
    if not found.requires_grad:
        return "its value has no gradient"
    return None

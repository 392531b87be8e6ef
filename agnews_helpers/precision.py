"""Is a lower precision safe on this machine? Asked before the first step of a run that wants one. Notebook 05."""
import torch

from .errors import PrecisionRefused
from .hardware import Card, this_card

LARGEST_GAP = 0.1  # nats between the losses of one batch in the two precisions
LEAST_COSINE = 0.9  # between their gradients


def check_precision(model, batch: dict, precision: str, device: torch.device) -> None:
    """Run one batch forward and backward in fp32 and in `precision`, and compare. Nothing of the model changes.

    Raises
    ------
    PrecisionRefused
        Where the hardware is known to be slow or to fail, or when losses or gradients differ too much.
    """
    reason = refusal(precision, device.type, this_card() if device.type == "cuda" else None)
    if reason:
        raise PrecisionRefused(f"precision={precision!r} is refused: {reason} Use precision='fp32'.")
    model, batch = model.to(device), {name: tensor.to(device) for name, tensor in batch.items()}
    was_training = model.training
    model.eval()  # without dropout, whose masks would differ
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    (loss, gradient), (low_loss, low_gradient) = (_one_batch(model, batch, device.type, dtype) for dtype in (None, half))
    model.train(was_training)
    cosine = torch.nn.functional.cosine_similarity(gradient, low_gradient, dim=0).item()
    if not (abs(loss - low_loss) <= LARGEST_GAP and cosine >= LEAST_COSINE):  # also where one is not a number
        raise PrecisionRefused(
            f"precision={precision!r} is refused: on the first batch the loss is {low_loss:.4f} instead of {loss:.4f}, and its gradient "
            f"agrees with that of fp32 by a cosine of {cosine:.3f} (at least {LEAST_COSINE} is wanted). Use precision='fp32'.")


def refusal(precision: str, device: str, card: Card | None) -> str | None:
    """Why `precision` is known not to be worth trying on a device, in a sentence; None where it is.

    Reports: GTX 16xx cards have no tensor cores, fp16 products are slow on them (pytorch#121957, #195716) and
    NaNs are reported (pytorch#58123, #77955); below compute capability 8.0 bf16 is emulated; below 7.0 fp16 runs at a fraction of fp32's speed.
    """
    if card is None:
        return f"fp16 needs a CUDA card, and training would run on {device}." if precision == "fp16" else None
    if "GTX 16" in card.name:
        return f"the {card.name} has no tensor cores: fp16 is slow and NaNs are reported, and bf16 is only emulated."
    if precision == "bf16" and card.capability < (8, 0):
        return f"the {card.name} only emulates bf16, which needs compute capability 8.0."
    if precision == "fp16" and card.capability < (7, 0):
        return f"fp16 on the {card.name} is slower than fp32: it needs compute capability 7.0."
    return None


def _one_batch(model, batch: dict, device: str, dtype: torch.dtype | None) -> tuple[float, torch.Tensor]:
    """Loss and gradient (of all parameters, one after the other) of one batch."""
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(**batch).loss
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return loss.item(), gradient

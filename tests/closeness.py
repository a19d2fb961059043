"""How far apart two programs for the same sums may be: rounding differs between processors, the sums do not."""

import torch


def ulps(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in units in the last place of the largest wanted value.

    A sum of n terms is off by less than n units of its largest partial sum, and by a few of them as a rule; two
    programs that add in another order are a few units apart, and a fault is thousands.
    """
    assert found.shape == wanted.shape, f"{tuple(found.shape)} beside {tuple(wanted.shape)}"
    if not wanted.numel():
        return 0.0
    unit = torch.finfo(wanted.dtype).eps * wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
    return ((found - wanted).abs().max() / unit).item()


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-6) -> None:
    """The largest difference is at most that part of the largest wanted value."""
    assert found.shape == wanted.shape, f"{tuple(found.shape)} beside {tuple(wanted.shape)}"
    assert ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)).item() <= tolerance

"""Writes a calibration into a student's own weights: its score is then a probability, with nothing to carry along.

A calibration on the log-odds s, sigmoid(slope s + intercept), is linear in s; and s is linear in the last weights of
both students (arXiv 2411.13045; calibrating is ours [NF->P]):

    interaction      s = z_good - z_bad, of two labels      label_head: slope W, slope b + intercept / 2 (-+)
    representation   s = kappa cos + b                      slope kappa, slope b + intercept
"""

import torch

from embedders.mkd import InteractionStudent, Student


@torch.no_grad()
def calibrate(student: Student, slope: float, intercept: float) -> None:
    """Change the student in place, so that its log-odds become slope s + intercept.

    Args:
        student: of two labels.
        slope: above 0, so that no order changes.
        intercept: any.

    Raises:
        ValueError: the slope is not above 0, or there are more than two labels.
    """
    if not slope > 0:
        raise ValueError(f"calibrate: a slope of {slope} would lose or turn round the order; expected above 0")
    if isinstance(student, InteractionStudent):
        head = student.label_head
        if head.out_features != 2:
            raise ValueError(f"calibrate: the student tells {head.out_features} labels apart, expected 2")
        head.weight.mul_(slope)
        head.bias.mul_(slope).add_(torch.tensor([-0.5, 0.5], device=head.bias.device) * intercept)
        return
    student.log_kappa.add_(float(torch.tensor(slope, dtype=torch.float64).log()))
    student.bias.mul_(slope).add_(intercept)

"""convlib: two-dimensional convolution in hand-written kernels, for NumPy, CuPy, Numba, PyTorch and JAX arrays.

>>> import numpy as np, convlib
>>> convlib.conv2d(np.ones((1, 3, 5, 5), np.float32), np.ones((8, 3, 3, 3), np.float32)).shape
(1, 8, 3, 3)
"""

from pathlib import Path
from typing import TYPE_CHECKING

# In a plain checkout kernels/ lies beside this folder, not inside: let `convlib.kernels` be found there.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "kernels" / "launching.py").is_file() and not (Path(__file__).parent / "kernels").exists():
    __path__.append(str(_checkout))

from .errors import UnsupportedError  # noqa: E402
from .explain import explain, info  # noqa: E402
from .gradients import conv2d_bias_grad, conv2d_input_grad, conv2d_weight_grad, conv_transpose2d  # noqa: E402
from .operations import conv2d  # noqa: E402
from .plan import Plan, plan  # noqa: E402
from .problem import ConvProblem  # noqa: E402
from .tuning import tune  # noqa: E402

if TYPE_CHECKING:
    from .explain import kernels  # type checkers know of no package that can be called
else:
    from . import kernels  # the package of kernels; called, it lists them

__version__ = "0.1.0"
__all__ = [
    "ConvProblem",
    "Plan",
    "UnsupportedError",
    "conv2d",
    "conv2d_bias_grad",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv_transpose2d",
    "explain",
    "info",
    "kernels",
    "plan",
    "tune",
]

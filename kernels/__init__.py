"""Every hand-written kernel, and nothing else. Start at README.md: the map.

Called, as convlib.kernels(), it lists them: the package and the public function share one name.
"""

import sys
from types import ModuleType


class CallablePackage(ModuleType):
    def __call__(self):
        """Every listed kernel: name, family, algorithm, idea, file. Imports none of them."""
        from ..explain import kernels

        return kernels()


sys.modules[__name__].__class__ = CallablePackage

"""`improve` is the function, in whatever order pitlm and its modules are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

USE = "assert improve('x', 'a', improver=lambda x, y: y + 'b', gap=Longer(), rounds=2).final == 'abb'"
LONGER = "class Longer:\n    def gaps(self, items):\n        return [float(len(i.response) - len(i.reference)) for i in items]\n"


@pytest.mark.parametrize(
    "imports",
    [
        "from pitlm import improve",
        "import pitlm\nimprove = pitlm.improve",
        "import pitlm.loop.loop\nfrom pitlm import improve",
        "import pitlm.loop.loop\nimport pitlm\nimprove = pitlm.improve",
        "import pitlm\nimport pitlm.loop.loop\nimprove = pitlm.improve",
        "from pitlm import improve\nimport pitlm.loop.loop\nassert improve is pitlm.loop.loop.improve is pitlm.improve",
    ],
)
def test_improve_is_callable_in_every_order_of_imports(imports):
    done = subprocess.run([sys.executable, "-c", f"{LONGER}{imports}\n{USE}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

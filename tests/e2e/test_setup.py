"""`scripts/setup` takes no package that the locks do not know."""

import os
import shutil
import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Checkout:
    """The script in a folder of its own, whose tools come from a folder of wheels in place of an index."""

    def __init__(self, folder: Path) -> None:
        """The only wheel there is `uv-1.0`."""
        self.folder = folder
        (folder / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "setup", folder / "scripts")
        self.wheel = folder / "wheels" / "uv-1.0-py3-none-any.whl"
        self.wheel.parent.mkdir()
        info = {
            "METADATA": "Metadata-Version: 2.1\nName: uv\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        with zipfile.ZipFile(self.wheel, "w") as wheel:
            wheel.writestr("uv_is_here.py", "")
            for name, text in info.items():
                wheel.writestr(f"uv-1.0.dist-info/{name}", text)

    def set_up(self, tools: str) -> str:
        """Runs it with this lock of tools; returns what it says. It does not get to its end: there is no real uv."""
        (self.folder / "requirements-tools.lock").write_text(tools)
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheel.parent), "PIP_CONFIG_FILE": os.devnull}
        ran = subprocess.run(
            [self.folder / "scripts" / "setup", "run"],
            env={**os.environ, **offline},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode != 0
        return ran.stderr

    @property
    def has_uv(self) -> bool:
        """The wheel was installed."""
        return any((self.folder / ".tools").rglob("uv_is_here.py"))


def test_a_uv_that_is_not_the_one_that_was_locked_is_not_installed(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    assert "DO NOT MATCH THE HASHES" in checkout.set_up(f"uv==1.0 --hash=sha256:{'0' * 64}\n")
    assert not checkout.has_uv
    checkout.set_up(f"uv==1.0 --hash=sha256:{sha256(checkout.wheel.read_bytes()).hexdigest()}\n")
    assert checkout.has_uv

"""What is packed is what was written: sdist, wheel and plain checkout, each tried in processes of their own."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv", "venv", "build", "dist", "shared", "*.egg-info", "__pycache__", ".*_cache", ".benchmarks", "local"
)
CUDA_C = sorted(path.name for path in (CHECKOUT / "kernels" / "cupy_raw").iterdir() if path.suffix in (".cu", ".cuh"))

IMPORT_EVERY_KERNEL = """
import importlib, pathlib, sys
import convlib
from convlib import dispatch
from convlib.kernels.launching import CudaSource

home = pathlib.Path(sys.argv[1]).resolve()
for name in dispatch.KERNELS:
    module = importlib.import_module(f"convlib.kernels.{name}")
    assert home in pathlib.Path(module.__file__).resolve().parents, module.__file__
for name in sys.argv[2:]:
    assert CudaSource(name, "").text(), name
assert "kernels" not in sys.modules
print(len(dispatch.KERNELS))
"""


def python(code, *arguments, path, cwd):
    """What `code` prints in a new process that finds modules in `path` before anything installed."""
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout's sources: building writes into the folder it builds from."""
    return Path(shutil.copytree(CHECKOUT, tmp_path_factory.mktemp("checkout") / "convlib", ignore=NOT_SOURCES))


@pytest.fixture(scope="module")
def built(checkout, tmp_path_factory):
    """The folder with the sdist and the wheel that was built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("convlib_kernels-*.whl"))


def test_every_package_folder_is_listed():
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"convlib": CHECKOUT / "convlib", "convlib.kernels": CHECKOUT / "kernels"}
    found = {
        ".".join((package, *file.parent.relative_to(folder).parts))
        for package, folder in folders.items()
        for file in folder.rglob("__init__.py")
    }
    assert set(settings["packages"]) == found


def test_installed_wheel_imports_every_kernel_and_reads_every_cuda_file(wheel, tmp_path):
    home = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(home)]
    subprocess.run([*install, str(wheel)], check=True)
    assert int(python(IMPORT_EVERY_KERNEL, home, *CUDA_C, path=home, cwd=tmp_path)) > 0


def test_plain_checkout_imports_every_kernel_and_reads_every_cuda_file(checkout, tmp_path):
    assert int(python(IMPORT_EVERY_KERNEL, checkout, *CUDA_C, path=checkout, cwd=tmp_path)) > 0


def test_wheel_installs_one_top_level_name_and_its_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"convlib"}
    data = ("py.typed", "layers.json", "kernels/README.md", "kernels/numba_cpu/README.md", "kernels/gpu_cost.json")
    assert {f"convlib/{name}" for name in data} <= set(names)
    assert {f"convlib/kernels/cupy_raw/{name}" for name in CUDA_C} <= set(names)


def test_sdist_holds_what_a_tester_needs(built):
    with tarfile.open(next(built.glob("convlib_kernels-*.tar.gz"))) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"README.md", "LICENSE", "pyproject.toml", ".ci/run", "tests/test_packaging.py", "benchmarks/__main__.py"}
    assert wanted <= inside
    assert {f"kernels/cupy_raw/{name}" for name in CUDA_C} <= inside


def test_import_loads_neither_numba_nor_cupy_nor_torch(tmp_path):
    code = "import sys, convlib; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(python(code, path=CHECKOUT, cwd=tmp_path).split())
    assert "convlib" in loaded
    assert not loaded & {"numba", "numba_cuda", "llvmlite", "cupy", "torch", "jax", "keras", "scipy", "rich", "click"}


def test_no_line_tells_anyone_to_install_the_stranger_of_that_name(checkout):
    wrong = re.compile(r"pip3? install\s+(-\S+\s+)*[\"']?convlib\b(?!-kernels)")
    texts = [
        path for path in checkout.rglob("*") if path.is_file() and path.suffix in ("", ".md", ".py", ".toml", ".html")
    ]
    assert texts
    assert [path.name for path in texts if wrong.search(path.read_text(errors="replace"))] == []

"""What programs do alike: the one line about missing packages."""

import pytest
from click.testing import CliRunner

from convlib.examples import array_libraries, detect, edges, finetune, mnist, program, segment

NEEDED = [
    (edges.main, "skimage", "scikit-image", "examples"),
    (edges.main, "scipy", "SciPy", "examples"),
    (mnist.main, "keras", "Keras", "keras"),
    (mnist.main, "torch", "PyTorch", "torch"),
    (mnist.main, "matplotlib", "Matplotlib", "examples"),
    (finetune.main, "keras", "Keras", "keras"),
    (finetune.main, "matplotlib", "Matplotlib", "examples"),
    (detect.main, "onnx", "onnx", "onnx"),
    (detect.main, "skimage", "scikit-image", "examples"),
    (segment.main, "torch", "PyTorch", "torch"),
    (segment.main, "skimage", "scikit-image", "examples"),
]


@pytest.mark.parametrize(
    ("main", "package", "name", "extra"), NEEDED, ids=lambda v: v if isinstance(v, str) else v.callback.__module__
)
def test_a_missing_package_is_named_with_what_brings_it(main, package, name, extra, refusal):
    line = refusal(main, missing=[package])
    assert line == (
        f'the example needs {name}, which is not installed: python -m pip install "convlib-kernels[{extra}]"'
    )


def test_several_are_named_at_once(refusal):
    line = refusal(mnist.main, missing=["keras", "torch", "matplotlib"])
    assert line == (
        "the example needs Keras and PyTorch and Matplotlib, which are not installed: "
        'python -m pip install "convlib-kernels[keras,torch,examples]"'
    )


def test_the_libraries_example_needs_scipy_alone(monkeypatch):
    monkeypatch.setattr(program, "find_spec", lambda name: None)
    result = CliRunner().invoke(array_libraries.main)
    assert result.exit_code == 2
    assert result.output.startswith("the example needs SciPy, which is not installed: ")
    assert len(result.output.splitlines()) == 1


def test_every_extra_that_is_named_exists():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert {extra for _, extra in program.PACKAGES.values()} <= set(project["optional-dependencies"])

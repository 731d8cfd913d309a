"""A folder of tiny images in MNIST's form, and how a program refuses to run."""

import sys

import pytest
from click.testing import CliRunner

from convlib.examples import program
from tests.convlib.examples.programs import tiny_digits, write_idx


@pytest.fixture
def folder(tmp_path):
    """A folder in MNIST's form, two of its files zipped."""
    folder = tmp_path / "digits"
    folder.mkdir()
    images, labels = tiny_digits(300, seed=0)
    write_idx(folder / "train-images-idx3-ubyte.gz", images)
    write_idx(folder / "train-labels-idx1-ubyte", labels)
    images, labels = tiny_digits(40, seed=1)
    write_idx(folder / "t10k-images-idx3-ubyte", images)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture
def refusal(monkeypatch, tmp_path):
    """The one line with which a program ends in code 2. All packages but those `missing` count as installed."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")

    def refused(main, *arguments, missing=()):
        for module in (program, sys.modules[main.callback.__module__]):
            monkeypatch.setattr(module, "find_spec", lambda name: None if name in missing else name, raising=False)
        result = CliRunner().invoke(main, ["--output", str(tmp_path / "output"), *map(str, arguments)])
        assert result.exit_code == 2, result.output
        assert not (tmp_path / "output").exists()
        (line,) = result.output.splitlines()
        return line

    return refused

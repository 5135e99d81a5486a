"""What several test files need besides fixtures."""

import io
import os
import sys
import tarfile
from contextlib import contextmanager
from multiprocessing import get_context
from unittest.mock import patch

import nbformat
import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image

from vitsal import cli

PARAMETERS = 'limit = 1\nname = "a"\noutput_dir = ""'
COUNT = """
from vitsal.course.notebooks import save_headlines
save_headlines(output_dir, "count", {"twice the limit": 2 * limit, "name": name})
"""


def randomise(model, seed=0):
    """Give every parameter random values that matter.

    As timm initialises them, attention is close to uniform, and layer scales, relative position tables and some heads
    are zero or nearly so: a test on such a model would not notice a token in the wrong place.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("weight") and parameter.ndim > 1:
                parameter.copy_(1.3 * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.3 * noise)
    return model.eval()


def in_two_processes(function, *arguments):
    """Call a function in two processes that work as one, as behind torchrun; nothing is imported again for them."""

    def call():
        AcceleratorState._reset_state(reset_partial_state=True)  # that of the one process which the tests are
        function(*arguments)
        assert PartialState().num_processes == 2

    debug_launcher(call)


def traces(model):
    """All that a careless hook or patch would leave behind in a model, in a form that can be compared."""
    return {
        name: (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._backward_hooks),
            getattr(module, "fused_attn", None),
            sorted(set(vars(module)) - {"_compiled_call_impl"}),
            type(getattr(module, "patch_drop", None)),
            [parameter.grad is None for parameter in module.parameters(recurse=False)],
        )
        for name, module in model.named_modules()
    }


def assert_close(actual, expected, tolerance=1e-5):
    """Largest absolute difference at most `tolerance`."""
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def save_image(path, colour=(200, 30, 90), size=(80, 80), mode="RGB", **options):
    """Write one plain image, and the folders above it; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)
    return path


def noise_image(path, seed, size=(80, 80)):
    """Write one image of 5 x 5 random colours, and the folders above it; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = 255 * torch.rand(5, 5, 3, generator=torch.Generator().manual_seed(seed))
    Image.fromarray(pixels.to(torch.uint8).numpy()).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def noise_folder(path, count, classes=2):
    """Write so many images of noise, 64 x 64 pixels, in a folder for each class; returns the path of all."""
    for index in range(count):
        noise_image(path / f"{index % classes}" / f"{index:02d}.png", seed=index, size=(64, 64))
    return path


def write_shards(samples, folder, shard_size):
    """Write images and their labels, [(path, label)], in order as WebDataset shards `val-0.tar`, `val-1.tar`, ..."""
    folder.mkdir(parents=True)
    for first in range(0, len(samples), shard_size):
        with tarfile.open(folder / f"val-{first // shard_size}.tar", "w") as tar:
            for index, (path, label) in enumerate(samples[first : first + shard_size], first):
                ending = path.suffix.lower().replace("jpeg", "jpg").lstrip(".")
                for kind, content in [(ending, path.read_bytes()), ("cls", str(label).encode())]:
                    member = tarfile.TarInfo(f"{index:06d}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


class MadeImages:
    """What data sets read from: samples that a function makes, number -> (image or file, label), told by `stamp`."""

    def __init__(self, read, length, name=str, stamp=str):
        self.read, self.length, self.name, self.stamp = read, length, name, stamp

    def __len__(self):
        return self.length


def failing_command(monkeypatch, capsys, arguments, bars):
    """Run the command line, which must end with status 2, one paragraph on stderr after progress bars of these names.

    Returns that paragraph. Nothing may be on stdout.
    """
    monkeypatch.setattr(sys, "argv", ["vitsal", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.out == ""
    *before, error = shown.err.splitlines()
    assert error.startswith("Error: ")
    assert all(line.startswith(bars) for line in filter(None, before))
    return error


def start_command(arguments, log):
    """The command line in a process of its own, for which nothing is imported again; what it says goes to a file."""

    def run():
        with log.open("w") as sys.stdout:
            sys.stderr, sys.argv = sys.stdout, ["vitsal", *map(str, arguments)]
            cli.main()

    process = get_context("fork").Process(target=run)
    process.start()
    return process


class KillError(BaseException):
    """Stands for a kill."""


@contextmanager
def killed_once(learning, step):
    """Inside this context a learning, a subclass of `Steps`, is killed when it first comes to this step.

    Yields the numbers of all steps that are begun meanwhile, the one that is killed among them.
    """
    take_step, begun = learning.take_step, []

    def take_or_die(self, batch):
        begun.append(self.step)
        if self.step == step and begun.count(step) == 1:
            raise KillError
        take_step(self, batch)

    with patch.object(learning, "take_step", take_or_die):
        yield begun


def write_notebook(path, *cells):
    """A notebook of code cells, the first one with the parameters."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


class Malicious:
    """Unpickled, this would create a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)

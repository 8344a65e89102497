"""Types for argparse that the scripts share: what is wrong with an argument is said before anything is fetched, built or measured."""

import math
import os
import re
from argparse import ArgumentTypeError
from pathlib import Path

# Elements of the kernels' tensors.
DTYPES = ("f32", "f16", "bf16")
# V is at most this.
LARGEST_VOCABULARY = 2**31 - 1
# As in build/architectures.rs.
LOWEST_ARCHITECTURE = 80
LOWEST_OF_SUFFIX = {"a": 90, "f": 100}
SIZES = {"logits": ("N", "V"), "linear": ("N", "H", "V")}


def integer(lowest, largest=None):
    """An integer in a range."""
    expected = f"an integer, {lowest} or more" if largest is None else f"an integer from {lowest} to {largest}"

    def read(text):
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not {expected}") from None
        if value < lowest or (largest is not None and value > largest):
            raise ArgumentTypeError(f"{text} is not {expected}")
        return value

    return read


positive_integer = integer(1)
vocabulary = integer(1, LARGEST_VOCABULARY)


def number(allowed, expected):
    """A finite number that `allowed` accepts; `expected`: which, in words."""

    def read(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not allowed(value):
            raise ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return read


positive_number = number(lambda value: value > 0, "a number above 0")


def one_of(names):
    """One of some names."""

    def read(text):
        if text not in names:
            raise ArgumentTypeError(f"{text!r} is not one of {', '.join(names)}")
        return text

    return read


def list_of(entry):
    """Entries with commas between them, one at least."""

    def read(text):
        words = [word.strip() for word in text.split(",")]
        if not all(words):
            raise ArgumentTypeError(f"{text!r} has an empty entry: one or more were expected, with commas between them")
        return [entry(word) for word in words]

    return read


def architectures(text):
    """Compute capabilities as EXO_KERNELS_CUDA_ARCHS has them, `9.0`, `90` or `sm_90`, with a suffix or not; as nvcc's `90`."""
    found = []
    for word in re.split(r"[,;\s]+", text.strip(" ,;").lower()):
        match = re.fullmatch(r"(?:sm_|compute_)?([1-9]\d{1,2})([af]?)|([1-9]\d?)\.(\d)([af]?)", word, re.ASCII)
        if not match:
            raise ArgumentTypeError(f"{word!r} is not a compute capability such as 90, 9.0 or 90a, or several with commas between them")
        name = "".join(part or "" for part in match.groups())
        capability = int(name.rstrip("af"))
        if capability < LOWEST_ARCHITECTURE:
            raise ArgumentTypeError(f"{word}: the kernels need a compute capability of 8.0 or later")
        if capability < LOWEST_OF_SUFFIX.get(name[-1], 0):
            raise ArgumentTypeError(f"{word}: there is {capability} only: 'a' begins with 90, 'f' with 100")
        found.append(name)
    return list(dict.fromkeys(found))


def shape(text):
    """`logits/<type>/<N>x<V>` or `linear/<type>/<N>x<H>x<V>`: the text, the kind, the type and the sizes."""
    kind, dtype, sizes = match.groups() if (match := re.fullmatch(r"(\w+)/(\w+)/([\dx]+)", text, re.ASCII)) else ("", "", "")
    numbers = [int(size) for size in sizes.split("x") if size]
    if kind not in SIZES or dtype not in DTYPES or len(sizes.split("x")) != len(SIZES[kind]) or len(numbers) != len(SIZES[kind]):
        expected = " or ".join(f"{kind}/<type>/" + "x".join(f"<{size}>" for size in sizes) for kind, sizes in SIZES.items())
        raise ArgumentTypeError(f"{text!r} is not {expected}, with a type of {', '.join(DTYPES)}")
    if min(numbers) < 1 or numbers[-1] > LARGEST_VOCABULARY:
        raise ArgumentTypeError(f"{text!r}: sizes are 1 or more, V at most {LARGEST_VOCABULARY}")
    return text, kind, dtype, numbers


def output_file(text):
    """A file that can be written, in a folder that is there."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{text} is a folder; a file was expected")
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentTypeError(f"{text} cannot be written: permission denied")
    return path

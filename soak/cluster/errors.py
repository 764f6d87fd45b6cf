"""What ends a soak run before its time.

What it is: the package's own exceptions. What it owns: nothing. What it must not know: anything else of the package.
"""


class SoakFailed(Exception):
    """The run could not be carried out: nothing was proven, and nothing was violated. The text says what is missing."""


class Violated(Exception):
    """Something that must hold does not, and the run cannot go on from there; the text says what."""

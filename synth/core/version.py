"""Pairsmith's version, where the code itself says it.

Not from the installed metadata: those of an editable install stay what they were when the sources move on, and a cache
that goes by them would give the results of an earlier version out as this one's.
"""

VERSION = "0.3.0"

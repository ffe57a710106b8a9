"""Sample data: wholly invented clinical notes and twenty kinds of questions about them.

A note is drawn from a seed (``record``), written in one of many layouts (``notes``) and asked
about (``tasks``, ``wordings``): the rows that the package ships (``rows``). The same generator,
with other seeds and without any question, writes the text that the embedded starter model was
pretrained on (``starter/corpus.py``).
"""

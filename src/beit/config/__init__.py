"""Every knob of every verb, as frozen dataclasses: the command line, the Python API and the YAML on disk.

A field's docstring is its help text. Defaults are the released BEiT-base recipe unless a line says otherwise;
:mod:`beit.presets` holds the other recipes. Nothing here imports torch, so that ``beit --help`` stays fast.
"""

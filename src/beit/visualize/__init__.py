"""Pictures and pages for people: contact sheets of images, masks and tokens, curves, and the HTML report.

:mod:`.pictures`, :mod:`.drawings` and :mod:`.label_maps` work on tensors; what stands behind the report
(:mod:`.report`, :mod:`.tables`, :mod:`.verdicts`, :mod:`.curves`) reads the records of runs and
imports no torch, so that `beit report` starts at once.
"""

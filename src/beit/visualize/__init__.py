"""Pictures and pages for people: contact sheets of images, masks and tokens, curves, and the HTML report.

:mod:`.pictures` works on tensors; everything behind the report (:mod:`.run_record`, :mod:`.figures`, :mod:`.curves`,
:mod:`.verdicts`, :mod:`.report`) reads run directories and imports no torch, so that `beit report` starts at once.
"""

"""The values of a label layer.

A label layer is one annotator's map of one case: uint8, value k names class k (0 is background), and IGNORE means
that this annotator did not look here. IGNORE is never background: a loss must not learn from it, an agreement must not
count it.
"""

IGNORE: int = 255
MAX_CLASSES: int = 255  # 0..254, one value is IGNORE's

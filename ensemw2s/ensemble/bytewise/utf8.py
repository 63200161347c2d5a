"""Valid UTF-8, byte by byte: which bytes may follow the ones of an unfinished character, so that an answer is text."""

from __future__ import annotations

import numpy as np

from ensemw2s.ensemble.bytewise.vocabulary import END

_TRAIL = (0x80, 0xBF)
# RFC 3629, section 4: first bytes, and the range of each byte after them. No surrogates, no overlong forms.
_FORMS: list[tuple[tuple[int, int], ...]] = [
    ((0x00, 0x7F),),
    ((0xC2, 0xDF), _TRAIL),
    ((0xE0, 0xE0), (0xA0, 0xBF), _TRAIL),
    ((0xE1, 0xEC), _TRAIL, _TRAIL),
    ((0xED, 0xED), (0x80, 0x9F), _TRAIL),
    ((0xEE, 0xEF), _TRAIL, _TRAIL),
    ((0xF0, 0xF0), (0x90, 0xBF), _TRAIL, _TRAIL),
    ((0xF1, 0xF3), _TRAIL, _TRAIL, _TRAIL),
    ((0xF4, 0xF4), (0x80, 0x8F), _TRAIL, _TRAIL),
]


def unfinished(text: bytes) -> bytes:
    """The bytes at the end of a valid beginning that are not a whole character yet; at most three."""
    for length in range(1, min(3, len(text)) + 1):
        byte = text[-length]
        if byte >= 0xC0:
            width = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return text[-length:] if length < width else b""
        if byte < 0x80:
            break
    return b""


def allowed(begun: bytes) -> np.ndarray:
    """What may follow an unfinished character; END only where there is none.

    Args:
        begun: Its bytes so far, as `unfinished` gives them.

    Returns:
        `[257]`, bool.
    """
    mask = np.zeros(END + 1, dtype=bool)
    mask[END] = not begun
    for form in _FORMS:
        if len(begun) < len(form) and all(low <= b <= high for b, (low, high) in zip(begun, form, strict=False)):
            low, high = form[len(begun)]
            mask[low : high + 1] = True
    return mask

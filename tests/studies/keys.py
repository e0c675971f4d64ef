from collections import Counter

from isthmus.studies.result import StudyResult


def repeated(*found: StudyResult) -> list[tuple[object, ...]]:
    """Returns what more than one number is called by."""
    counts = Counter(m.key for result in found for m in result.measurements)
    return [key for key, n in counts.items() if n > 1]

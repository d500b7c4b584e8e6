"""What settings of methods must be."""


def need_positive(**counts: int) -> None:
    """Raises `ValueError` for a count below 1, by its name."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: {count}: give a positive count")

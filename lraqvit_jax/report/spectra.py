"""The part of the page on singular values: what the kept ranks hold of every kernel."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from lraqvit_jax.report import panels
from lraqvit_jax.report.blocks import Grid, Section, figure, span
from lraqvit_jax.report.read import place


def spectra(values: Mapping[str, Float[np.ndarray, " k"]], ranks: Mapping[str, int]) -> Section:
    """Singular values of the dense kernels with the kept rank."""
    head = "spectra", "Singular values"
    if not ranks:
        return Section(*head, "No layer is factorized in this plan.")
    paths = [path for path in values if path in ranks]
    if not paths:
        return Section(
            *head, "Not measured yet. The stage report does it, once the stage teacher has made a dense model."
        )
    kinds: dict[str, list[str]] = {}
    for path in paths:
        kinds.setdefault(place(path)[1], []).append(path)
    drawn, table = [], []
    for number, (kind, of_kind) in enumerate(kinds.items()):
        kept = [ranks[path] for path in of_kind]
        sizes = [len(values[path]) for path in of_kind]
        energy = [_energy(values[path], rank) for path, rank in zip(of_kind, kept, strict=True)]
        words = f"{kind}: {span(kept)} of {span(sizes)} kept, which hold {span(energy, '.0%')} of the kernel's energy."
        drawn.append(
            figure(
                panels.spectra(f"spectra{number}", [values[path] for path in of_kind], kept),
                f"spectra{number}",
                f"Singular values of {kind} in every block, the kept part shaded",
                words,
                words,
            )
        )
        table.append((kind, span(kept), span(sizes), span(energy, ".1%")))
    text = (
        "A kernel whose singular values fall quickly loses little when only the first are kept. Lines are whole up to "
        "the rank of their layer and dotted behind it; what every block keeps is shaded, and lighter what only some "
        "keep. Energy is the share of the sum of squares. Outputs may lose less: a pair that knows the activations, "
        "or is trained, errs where it is felt least."
    )
    columns = ("kind of layer", "rank", "singular values", "energy kept")
    return Section(*head, text, [Grid("", "", drawn, ramp=True, columns=columns, rows=table)])


def _energy(values: Float[np.ndarray, " k"], rank: int) -> float:
    squares = np.square(values, dtype=np.float64)
    return float(squares[:rank].sum() / max(squares.sum(), 1e-300))

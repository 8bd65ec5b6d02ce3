"""How far judges agree: pure functions of lists of verdicts."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations


def raw_agreement(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Share of equal verdicts among all pairs of verdicts on the same unit; None when no unit has two."""
    same = [a == b for verdicts in units for a, b in combinations(verdicts, 2)]
    return sum(same) / len(same) if same else None


def cohen_kappa(units: Iterable[tuple[Hashable, Hashable]]) -> float | None:
    """Agreement of two judges beyond chance, (p_o - p_e) / (1 - p_e) (Cohen 1960, Educ. Psychol. Meas. 20:37-46).

    p_o is the share of units with equal verdicts, p_e = sum_c p_1(c) p_2(c) with each judge's own shares. 1 is full
    agreement, 0 what chance gives. None when there is no unit, or when both always say the same one thing.
    """
    units = list(units)
    n = len(units)
    if not n:
        return None
    observed = sum(a == b for a, b in units) / n
    first, second = Counter(a for a, _ in units), Counter(b for _, b in units)
    expected = sum(first[c] * second[c] for c in first) / n**2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal data, any number of judges, gaps allowed
    (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C):

        alpha = 1 - D_o / D_e = 1 - (n - 1) sum_{c != k} o_ck / sum_{c != k} n_c n_k

    where o_ck counts the ordered pairs of verdicts (c, k) within a unit, each weighted by 1 / (m_u - 1), m_u is the
    number of verdicts on unit u, n_c = sum_k o_ck and n = sum_c n_c. Units with one verdict say nothing. None when no
    unit has two verdicts, or when only one verdict ever occurs.
    """
    paired = [list(verdicts) for verdicts in units if len(verdicts) >= 2]
    counts = Counter(verdict for verdicts in paired for verdict in verdicts)  # n_c
    n = sum(counts.values())
    expected = n**2 - sum(count**2 for count in counts.values())
    if not expected:
        return None
    observed = sum(2 * sum(a != b for a, b in combinations(row, 2)) / (len(row) - 1) for row in paired)
    return 1 - (n - 1) * observed / expected

"""Traffic that no schedule can beat: lower bounds on bytes moved into a fast memory of given size.

All hold for the classical algorithms (every product of the definition is formed; Strassen is outside) and for
any order of operations, with recomputation allowed. The argument is Hong and Kung's: cut a run into segments that each
move R bytes; a segment sees at most S + R bytes of operands, which caps the products it can form; a run needs
at least so many segments.

References:
    [1] J.-W. Hong, H. T. Kung, "I/O complexity: the red-blue pebble game", STOC 1981.
    [2] D. Irony, S. Toledo, A. Tiskin, "Communication lower bounds for distributed-memory matrix multiplication",
        JPDC 64 (2004): the Loomis-Whitney step, and many processors with private memories.
    [3] T. M. Smith, B. Lowery, J. Langou, R. A. van de Geijn, "A tight I/O lower bound for matrix multiplication",
        arXiv:1702.02017: the constant 2mnk/√S - 2S, attained to leading order.
    [4] B. Saha, C. Ye, "The I/O complexity of attention, or how optimal is FlashAttention?", arXiv:2402.07443:
        Θ(N²d²/S) for S ≥ d², Θ(N²d/√S) below.
    [5] J. Demmel, G. Dinh, "Communication-optimal convolutional neural nets", arXiv:1802.06905.
"""

from __future__ import annotations

from peakline.cost.numeric import Real, ops_for

__all__ = [
    "attention_backward_traffic",
    "attention_traffic",
    "both_products_traffic",
    "cascade_traffic",
    "convolution_traffic",
    "fused_attention_traffic",
    "matmul_traffic",
]

_MEET = 1.806444  # y of `matmul_traffic`, 2y³ = 3y² + 2, rounded up: the bound stays below both
_BACKWARD = 3.0 / 32.0 / 3.0**0.25  # see `attention_backward_traffic`


def matmul_traffic(products: Real, capacity: float, a: float, b: float, c: float, copies: int = 1) -> Real:
    """Least bytes read and written by a matrix product (or several independent ones).

        Q ≥ 2·products·√(a·b·c)/√S - 2·copies·S

    A segment that moves 2S bytes sees at most 3S bytes of A, B and C, so by Loomis-Whitney at most
    √(S/a · S/b · S/c) products; each such segment costs 2S. With a = b = c = 1 this is [3], eq. 2mnk/√S - 2S. It
    holds for C := AB as well: adding the m·n reads of C += AB to a run of C := AB and dropping its m·n
    writes turns one into the other. Independent products only lower what a segment can form (x^1.5 is superadditive).

    With private memories ([2]) the bound is the sum over units, however they divide the products. A unit whose memory
    starts empty and that forms p of them moves at least 2p·√(abc)/√S - 2S bytes, and every element it touches at least
    once, 3·(abc)^⅓·p^⅔ (Loomis-Whitney and the inequality of the means). Per product the larger of the two is least
    where they meet, so no division moves less than 3/y ≈ 1.66 (2y³ = 3y² + 2) instead of 2 times products·√(abc)/√S.

    Args:
        products: scalar multiplications, Σ m·n·k.
        capacity: S, bytes of the fast memory (of one unit where each of `copies` units has its own).
        a, b, c: bytes of one element of A, B, C. Partial sums kept wider than `c` only raise the traffic.
        copies: private memories among which the products are divided.

    Returns:
        Bytes, 0 where the bound says nothing (the problem fits).
    """
    if capacity <= 0:
        return 0.0 * products
    ops = ops_for(products)
    rate = ((a * b * c) / capacity) ** 0.5
    least = ops.maximum(2.0 * rate * products - 2.0 * copies * capacity, 0.0)
    if copies == 1:
        return least
    enough = _MEET**3 * capacity / rate  # products of one unit for which both bounds are equal
    return ops.where(products >= enough, ops.maximum(least, 3.0 / _MEET * rate * products), least)


def convolution_traffic(
    products: Real, taps: Real, capacity: float, a: float, b: float, c: float, copies: int = 1
) -> Real:
    """Least bytes of a direct convolution: the matmul bound with the reuse of inputs among `taps` discounted.

    One input element stands for at most `taps` entries of the unrolled (im2col) matrix, so S + R bytes of input are
    worth `taps` times as many entries and a segment forms at most √taps times as many products ([5], §3 for the
    sharper, stride-aware exponent; √taps ≥ √(taps/stride²) keeps this a bound for every stride). A transposed
    convolution has its outputs unrolled instead, with the same count.
    """
    return matmul_traffic(products / ops_for(taps).sqrt(taps), capacity, a, b, c, copies)


def attention_traffic(pairs: Real, dim: Real, capacity: float, q: float, k: float, copies: int = 1) -> Real:
    """Least bytes of attention that never stores its scores: Θ(pairs·d²/S) for S ≥ d², Θ(pairs·d/√S) below ([4]).

    With explicit constants, from the products of Q·Kᵀ alone. A segment that moves S bytes sees at most 2S bytes of Q
    and K. A score all of whose d products fall in the segment needs a whole row of Q and of K: at most (S/d)²/(q·k)
    scores, S²/(d·q·k) products. A score cut by the segment's ends, or spilled, occupies memory or traffic: at most 3S
    bytes of them, so at most √(S/q · S/k · 3S/min(q,k)) products by Loomis-Whitney. All `pairs`·d products need

        Q ≥ S·(pairs·d / (S²/(d·q·k) + S·√(3S/(q·k·min(q,k)))) - copies).

    Args:
        pairs: (query, key) pairs over all heads and the batch.
        dim: d, elements of one query or key.
        capacity: S, bytes of the fast memory (of one unit where each of `copies` units has its own).
        q, k: bytes of one element of Q and of K.
        copies: private memories among which the pairs are divided.
    """
    if capacity <= 0:
        return 0.0 * pairs
    whole = capacity * capacity / (dim * q * k)
    cut = capacity * (3.0 * capacity / (q * k * min(q, k))) ** 0.5
    return ops_for(pairs).maximum(capacity * (dim / (whole + cut) * pairs - copies), 0.0)


def cascade_traffic(
    products: Real,
    row: Real,
    column: Real,
    capacity: float,
    score: float,
    v: float,
    o: float,
    copies: int = 1,
    *,
    reuse: Real = 1.0,
    shared: Real = 1.0,
) -> Real:
    """Least bytes of two products after each other, (L·R)·V → O, whose intermediate ("scores") need not be stored.

    A score must be whole before it is passed on, so count the second product's scalar products. Segments read X - S
    bytes, where the first touch of an output counts as a read instead of its final write (as for C := AB above); a
    segment then has X bytes of L, R, V, O and begun scores to work with. Its scores are those it forms from whole rows
    of L and columns of R, at most r·c of them with r·row + c·column bytes, and those begun before it, which were held
    or read. By Loomis-Whitney it makes at most √(scores·V·O) products. Sharing out X best gives a quarter to each of L,
    R, V and O in the first case, a third to each of scores, V and O in the second; scores being convex in the bytes
    shared out between the two cases, nothing in between does better:

        h(X) = max( X² / (16·√(row·column·v·o)),  (X/3)^1.5 / √(score·v·o) ),
        Q ≥ (X - S)·(products / h(X) - copies)    for X = 2S, best in the first case, and for X = 3S, in the second.

    Forming scores again is allowed.

    Args:
        products: scalar products of the second multiplication.
        row, column: bytes of L and of R without which no score of that row, of that column, can be formed.
        capacity: S, bytes of the fast memory (of one unit where each of `copies` units has its own).
        score, v, o: bytes of one element; of a score at least those of a begun one.
        copies: private memories among which the products are divided.
        reuse: in how many products with the same element of V a score may stand (taps of a convolution); the h's grow
            with its root.
        shared: 2 where the elements of V are part of R's columns, so that the same bytes serve twice: R then gets half
            of X, and the first h is twice as large. Else 1.

    Returns:
        Bytes, 0 where the bound says nothing (the problem fits).
    """
    ops = ops_for(products, row, column, reuse, shared)
    if capacity <= 0:
        return 0.0 * products
    sides, again = ops.sqrt(row * column), ops.sqrt(reuse)
    least: Real = 0.0 * products
    for reach in (2.0 * capacity, 3.0 * capacity):
        whole = reach * reach * shared / (16.0 * sides * (v * o) ** 0.5)
        begun = (reach / 3.0) ** 1.5 / (score * v * o) ** 0.5
        most = ops.maximum(whole, begun) * again
        least = ops.maximum(least, (reach - capacity) * (products / most - copies))
    return least


def both_products_traffic(
    pairs: Real,
    inner: Real,
    outer: Real,
    capacity: float,
    l: float,
    r: float,
    v: float,
    o: float,
    score: float,
    copies: int = 1,
    *,
    gates: int = 1,
    latent: Real = 1.0,
) -> Real:
    """Least bytes of the same two products from counting both: more than `cascade_traffic` where S is below inner².

    A segment reads X - S bytes; the creation of a begun score that is stored later counts as a read instead of that
    store, and begun scores that it leaves behind take S bytes more. It forms at most X²/(4·row·column) whole scores,
    each of gates·inner products, and uses them up in at most X²/(16·√(row·column·v·o)). With y bytes of begun scores,
    Loomis-Whitney allows √y·(√(L·R) + √(V·O)) further products of both kinds, at most √y·(X + S - y)/2:

        H(X) = gates·inner·X²/(4·row·column) + X²/(16·√(row·column·v·o)) + ((X + S)/3)^1.5 / √(score·min(l·r, v·o)),
        Q ≥ (X - S)·(pairs·(gates·inner + outer)/H(X) - copies)    for X = 2S and X = 5S.

    With one width, √2·pairs·(gates·inner + outer)/√S for S ≪ inner². Scores may be formed again.

    Args:
        pairs: scores.
        inner, outer: elements of a row of L and of a row of V.
        capacity: S, bytes of the fast memory (of one unit where each of `copies` units has its own).
        l, r, v, o, score: bytes of one element.
        copies: private memories among which the scores are divided.
        gates: products that make one score.
        latent: 2 where V is a part of R's columns, else 1.
    """
    ops = ops_for(pairs, inner, outer, latent)
    if capacity <= 0:
        return 0.0 * pairs
    row, column = inner * l, gates * inner * r
    products = pairs * (gates * inner + outer)
    least: Real = 0.0 * products
    for reach in (2.0 * capacity, 5.0 * capacity):
        square = reach * reach
        whole = gates * inner * square / (4.0 * row * column)
        used = square * latent / (16.0 * ops.sqrt(row * column) * (v * o) ** 0.5)
        begun = ((reach + capacity) / 3.0) ** 1.5 / (score * min(l * r, v * o)) ** 0.5
        least = ops.maximum(least, (reach - capacity) * (products / (whole + used + begun) - copies))
    return least


def fused_attention_traffic(
    pairs: Real,
    dim: Real,
    v_dim: Real,
    capacity: float,
    q: float,
    k: float,
    v: float,
    o: float,
    copies: int = 1,
    *,
    latent: Real = 1.0,
) -> Real:
    """Least bytes of attention with both its products: four times `attention_traffic` for S ≫ d², and attained there.

    It is `cascade_traffic` with scores whose rows take d elements of Q and whose columns take d of K. With one width:
    4·pairs·d·d_v/S - S for S ≫ d², which flash attention moves to leading order when its tiles of queries and outputs
    fill the memory (2·pairs·d/rows with S = 2·rows·d); 2·pairs·d_v/√S - 2S below. Key heads shared by several query
    heads are one set of columns, so grouped queries are covered. The backward pass makes the same products with dO and
    dV in place of V and O, so it moves no less (`attention_backward_traffic` says more).

    Args:
        pairs: (query, key) pairs over all heads and the batch.
        dim, v_dim: d and d_v, elements of one query and of one value.
        capacity: S, bytes of the fast memory (of one unit where each of `copies` units has its own).
        q, k, v, o: bytes of one element.
        copies: private memories among which the pairs are divided.
        latent: 2 where V is a part of K (a latent cache), else 1: `shared` of `cascade_traffic`.

    Returns:
        Bytes, 0 where the bound says nothing (the problem fits).
    """
    return cascade_traffic(pairs * v_dim, dim * q, dim * k, capacity, min(q, k), v, o, copies, shared=latent)


def attention_backward_traffic(
    pairs: Real,
    dim: Real,
    v_dim: Real,
    capacity: float,
    q: float,
    k: float,
    v: float,
    o: float,
    copies: int = 1,
) -> Real:
    """Least bytes of attention's gradients: 8·3^¼ ≈ 10.5 times pairs·d²/S for S ≫ d² with one width.

    Count the products Pᵀ·dO → dV, dS·K → dQ and dSᵀ·Q → dK. A score P needs its rows of Q and K, its gradient dS those
    of dO and V too. With x bytes each of Q, dO, K, V (rows and columns of at least δ bytes, elements of at least ε) and
    y bytes of the three results, Loomis-Whitney three times and Cauchy-Schwarz over the results give

        products² ≤ y·G / (δε)²,   G = x_Q·x_K·x_dO + min(x_Q, x_dO)·min(x_K, x_V)·(x_Q + x_K).

    Moving bytes between Q and dO, and between K and V, towards equal shares never lowers G; then q = x_Q = x_dO and
    k = x_K = x_V with 2q + 2k = s give at most s³/(12√3), and y = X/4, s = 3X/4 is the best split:

        h(X)² = ( (3/32)·3^(-¼)·X² / (δε) )² + (X/3)³ / (ε²·score),

    the second term for scores begun before, which add to G. Q ≥ (X - S)·(pairs·(2d + d_v)/h(X) - copies). The
    gradients are outputs, so their first touch stands for their final write. Arguments as for
    `fused_attention_traffic`; gradients lie in the formats of what they are gradients of.
    """
    ops = ops_for(pairs, dim, v_dim)
    if capacity <= 0:
        return 0.0 * pairs
    side = ops.minimum(dim * min(q, k), v_dim * min(v, o))
    element = min(q, k, v, o)
    products = pairs * (2.0 * dim + v_dim)
    least: Real = 0.0 * products
    for reach in (2.0 * capacity, 3.0 * capacity):
        whole = _BACKWARD * reach * reach / (side * element)
        begun = (reach / 3.0) ** 3 / (element * element * min(q, k))
        least = ops.maximum(least, (reach - capacity) * (products / ops.sqrt(whole * whole + begun) - copies))
    return least

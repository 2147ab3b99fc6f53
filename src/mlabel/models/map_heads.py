"""Heads that look at every place of the image: CSRA and ML-Decoder.

They take a feature map (N, D, H, W) or tokens (N, T, D), where the heads of `heads` take one vector an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from mlabel.labels import LabelSpace
from mlabel.models.base_head import Head, as_places

# The temperatures of CSRA by its number of heads, as its authors chose them; the last, 99 with them, is so near the
# maximum over the places that it is taken to be that.
_TEMPERATURES: Mapping[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (1.0, math.inf),
    4: (1.0, 2.0, 4.0, math.inf),
    6: (1.0, 2.0, 3.0, 4.0, 5.0, math.inf),
    8: (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.inf),
}


class CSRAHead(Head):
    """Class-specific residual attention: the mean over all places, and for each label the places that speak for it.

    With z_t the logit of a label at place t, its logit is mean(z) + c * sum_t softmax_t(T z) z_t, summed over `heads`
    classifiers of different temperature T. A small object is then not lost in the mean. Needs N x T x L numbers in
    training, which suits up to some thousand labels.

    Args:
        num_features: D.
        space: The labels.
        dropout: The chance that a feature of a place is dropped.
        hidden: Not used.
        heads: Classifiers: 1, 2, 4, 6 or 8.
        attention: The weight c of the attention beside the mean; the paper uses 0.1 to 0.4.

    Reference: Zhu and Wu, "Residual Attention: A Simple but Effective Method for Multi-Label Recognition", ICCV 2021.

    Raises:
        ValueError: another number of heads, or an attention out of [0, 100].

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> CSRAHead(512, space)(torch.zeros(4, 512, 7, 7)).shape
        torch.Size([4, 2])
    """

    takes_map: ClassVar[bool] = True

    def __init__(
        self,
        num_features: int,
        space: LabelSpace,
        *,
        dropout: float = 0.0,
        hidden: int = 512,
        heads: int = 1,
        attention: float = 0.1,
    ) -> None:
        super().__init__(space)
        if heads not in _TEMPERATURES:
            raise ValueError(f"heads must be one of {', '.join(map(str, _TEMPERATURES))}; got {heads!r}")
        if not 0 <= attention <= 100:
            raise ValueError(f"attention must be from 0 to 100; got {attention!r}")
        self.temperatures, self.attention = _TEMPERATURES[heads], attention
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_features, space.num_labels)
        # One bias is enough for the sum, and it must not be weighed by the attention: that of `linear`, added last.
        self.others = nn.ModuleList(nn.Linear(num_features, space.num_labels, bias=False) for _ in range(heads - 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (N, L) of `features`: a map (N, D, H, W), or tokens (N, T, D)."""
        places = self.dropout(as_places(features))
        logits = self._attend(F.linear(places, self.linear.weight), self.temperatures[0])
        for other, temperature in zip(self.others, self.temperatures[1:], strict=True):
            logits = logits + self._attend(other(places), temperature)
        return logits + self.linear.bias

    def _attend(self, scores: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return the logits (N, L) of one classifier's logits at each place (N, T, L)."""
        if math.isinf(temperature):
            attended = scores.amax(dim=1)
        else:
            attended = ((temperature * scores).softmax(dim=1) * scores).sum(dim=1)
        return scores.mean(dim=1) + self.attention * attended

    def last_layers(self) -> Sequence[nn.Linear]:
        return [self.linear]

    def extra_repr(self) -> str:
        return f"heads={len(self.temperatures)}, attention={self.attention}"


class MLDecoderHead(Head):
    """ML-Decoder: queries that look at all places (cross-attention), each answering for a group of labels.

    The queries are fixed random vectors, not learned; they do not attend to each other, so that the work grows with
    their number and not with its square. With more labels than queries each query answers for the next
    ceil(L / queries) labels: ten thousand labels cost little more than a hundred, but for the last layer.

    Args:
        num_features: D.
        space: The labels.
        dropout: Inside the decoder (the paper: 0.1).
        hidden: Width E of the decoder (the paper: 768). Attention has 8 heads, or fewer where 8 does not divide it.
        queries: At most so many.
        feed_forward: Units of the layer after the attention.

    Reference: Ridnik, Sharir, Ben-Cohen, Ben-Baruch and Noy, "ML-Decoder: Scalable and Versatile Classification
    Head", WACV 2023.

    Raises:
        ValueError: queries or feed_forward that are not from 1 to 65,536.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", [f"tag {i}" for i in range(250)])])
        >>> head = MLDecoderHead(512, space)
        >>> head(torch.zeros(4, 512, 7, 7)).shape, head.queries.shape[0]
        (torch.Size([4, 250]), 84)
    """

    takes_map: ClassVar[bool] = True
    queries: torch.Tensor

    def __init__(
        self,
        num_features: int,
        space: LabelSpace,
        *,
        dropout: float = 0.0,
        hidden: int = 512,
        queries: int = 100,
        feed_forward: int = 2048,
    ) -> None:
        super().__init__(space)
        if not 1 <= queries <= 65_536:
            raise ValueError(f"queries must be from 1 to 65536; got {queries}")
        if not 1 <= feed_forward <= 65_536:
            raise ValueError(f"feed_forward must be from 1 to 65536; got {feed_forward}")
        self.labels_per_query = math.ceil(space.num_labels / queries)
        self.attention_heads = math.gcd(hidden, 8)
        self.embed = nn.Linear(num_features, hidden)
        self.register_buffer("queries", torch.randn(math.ceil(space.num_labels / self.labels_per_query), hidden))
        self.query_norm = nn.LayerNorm(hidden)
        self.to_query, self.to_key, self.to_value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.attended = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden, feed_forward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feed_forward, hidden)
        )
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden, space.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (N, L) of `features`: a map (N, D, H, W), or tokens (N, T, D)."""
        places = self.embed(as_places(features)).relu()
        queries = self.query_norm(self.queries)
        seen = self.attention_norm(queries + self.dropout(self._attend(queries, places)))
        seen = self.feed_forward_norm(seen + self.dropout(self.feed_forward(seen)))
        return self._answer(seen)

    def _attend(self, queries: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return for each image what each query sees (N, Q, E)."""

        def split(values: torch.Tensor) -> torch.Tensor:
            return values.unflatten(-1, (self.attention_heads, -1)).transpose(-2, -3)

        query = split(self.to_query(queries)).expand(places.shape[0], -1, -1, -1)
        seen = F.scaled_dot_product_attention(query, split(self.to_key(places)), split(self.to_value(places)))
        return self.attended(seen.transpose(1, 2).flatten(2))

    def _answer(self, seen: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, L): labels of query q are the rows of the last layer from q * labels_per_query on."""
        size = self.labels_per_query
        whole = self.space.num_labels // size
        # The last query may have fewer labels; the weight is cut in two rather than padded, which would copy it.
        rows, rest = self.linear.weight[: whole * size], self.linear.weight[whole * size :]
        logits = torch.einsum("nqe,qge->nqg", seen[:, :whole], rows.unflatten(0, (whole, size))).flatten(1)
        if len(rest):
            logits = torch.cat([logits, F.linear(seen[:, whole], rest)], dim=1)
        return logits + self.linear.bias

    def last_layers(self) -> Sequence[nn.Linear]:
        return [self.linear]

    def extra_repr(self) -> str:
        return f"queries={len(self.queries)}, labels_per_query={self.labels_per_query}"

"""Computes the names and shapes of a network's variables from its block table.

A name is the path of a leaf, with its collection first: "params/block1a/expand_conv/kernel",
"batch_stats/stem_bn/mean". The part between collection and leaf is the layer:
"block1a/expand_conv", "block4a/se/reduce".
"""

from collections.abc import Iterator

from jaxcls.models.efficientnet import BlockSpec, ModelSpec, block_names

type Shapes = dict[str, tuple[int, ...]]


def variable_shapes(spec: ModelSpec, *, num_classes: int) -> Shapes:
    """Returns every variable in the order of the layers, with no classifier for 0 classes.

    They equal the leaves of `EfficientNet.init`, but the network is not traced.
    """
    shapes = _conv("stem_conv", 3, 3, spec.stem_filters) | _norm("stem_bn", spec.stem_filters)
    features = spec.stem_filters
    for name, row, _ in block_names(spec):
        for layer in _block(row, features):
            shapes |= {_inside(name, path): shape for path, shape in layer.items()}
        features = row.filters
    shapes |= _conv("head_conv", 1, features, spec.head_filters)
    shapes |= _norm("head_bn", spec.head_filters)
    if num_classes:
        shapes["params/classifier/kernel"] = (spec.head_filters, num_classes)
        shapes["params/classifier/bias"] = (num_classes,)
    return shapes


def layer_of(path: str) -> str:
    """Returns the layer: "block4a/se/reduce" for "params/block4a/se/reduce/bias"."""
    return path.partition("/")[2].rpartition("/")[0]


def without_collection(path: str) -> str:
    """Returns "stem_conv/kernel" for "params/stem_conv/kernel"; the results are unique."""
    return path.partition("/")[2]


def _block(row: BlockSpec, features: int) -> Iterator[Shapes]:
    """Yields the layers of a block with `features` input channels; see `efficientnet.Block`."""
    expanded, window = features * row.expansion, row.kernel_size
    if row.expansion != 1:
        yield _conv("expand_conv", window if row.fused else 1, features, expanded)
        yield _norm("expand_bn", expanded)
    if not row.fused:
        yield _conv("depthwise_conv", window, 1, expanded)
        yield _norm("depthwise_bn", expanded)
    if row.se_ratio:
        squeezed = max(1, int(features * row.se_ratio))
        yield _conv("se/reduce", 1, expanded, squeezed) | {"params/se/reduce/bias": (squeezed,)}
        yield _conv("se/expand", 1, squeezed, expanded) | {"params/se/expand/bias": (expanded,)}
    single = row.fused and row.expansion == 1
    yield _conv("project_conv", window if single else 1, expanded, row.filters)
    yield _norm("project_bn", row.filters)


def _conv(layer: str, size: int, channels_in: int, channels_out: int) -> Shapes:
    return {f"params/{layer}/kernel": (size, size, channels_in, channels_out)}


def _norm(layer: str, channels: int) -> Shapes:
    leaves = (
        ("params", "scale"),
        ("params", "bias"),
        ("batch_stats", "mean"),
        ("batch_stats", "var"),
    )
    return {f"{collection}/{layer}/{leaf}": (channels,) for collection, leaf in leaves}


def _inside(block: str, path: str) -> str:
    collection, _, rest = path.partition("/")
    return f"{collection}/{block}/{rest}"

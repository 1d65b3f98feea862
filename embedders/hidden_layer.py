"""Reads a transformer at a layer below its top, without computing the layers above.

Layers are numbered as everywhere: 1 is the output of the first block, and a model of n blocks has its last layer at n.
States below the top of a decoder come before its final norm, which is made for the last layer only.

Letters: N texts of a batch, L tokens, D width.
"""

from collections.abc import Callable

from torch import Tensor, nn

StatesOf = Callable[[Tensor, Tensor], Tensor]
"""(ids_NL, mask_NL as 0 and 1) -> states [N, L, D]."""


def last_layer(model: nn.Module) -> StatesOf:
    """The states that the model itself gives."""
    return lambda ids_NL, mask_NL: model(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state


def layer_below(model: nn.Module, layer: int, num_layers: int) -> StatesOf:
    """The states after block `layer`. The blocks above are taken out of the model: it is changed, and smaller.

    Args:
        model: a transformer of `num_layers` blocks.
        layer: 1 to num_layers - 1.
        num_layers: to tell the list of blocks from other lists of modules.

    Raises:
        ValueError: the model has no list of its blocks, e.g. because they share their weights.
    """
    assert 1 <= layer < num_layers
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == num_layers]
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has no list of its {num_layers} layers, so layer {layer} cannot be read; "
            "leave `layer` unset to read the last one"
        )
    blocks = lists[0]
    del blocks[layer:]
    given: list[Tensor] = []

    def keep(_block: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        given.append(output if isinstance(output, Tensor) else output[0])

    blocks[-1].register_forward_hook(keep)

    def states(ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        given.clear()
        model(input_ids=ids_NL, attention_mask=mask_NL)
        return given.pop()

    return states

"""Whether what torch.export and ONNX make of a module gives what the module gives."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim


def check_export(module: nn.Module, example: Tensor, other: Tensor) -> None:
    exported = torch.export.export(module, (example,), dynamic_shapes=({0: Dim("batch")},))
    expected = module(other).detach()
    torch.testing.assert_close(exported.module()(other), expected)
    program = torch.onnx.export(exported, dynamo=True, verbose=False, optimize=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=5e-4, rtol=1e-3)


class OfScales(nn.Module):
    """A decoder of feature maps as a module of one tensor: how much of some maps each image of a batch has."""

    def __init__(self, decoder: nn.Module, maps: Sequence[Tensor]) -> None:
        super().__init__()
        self.decoder = decoder
        self.maps = nn.ParameterList(each[:1] for each in maps)

    def forward(self, scales_B: Tensor) -> Tensor:
        masks: Tensor = self.decoder([scales_B[:, None, None, None] * each for each in self.maps])
        return masks

"""What is the squared norm of each sample's gradient, from what comes back through one backward pass?

A hook on the output of every recorded use sees the gradient that comes back. A parameter that is used once has its
norms there and then, all others at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from anybatch.stats.module_samples import ModuleCall, has_rows
from anybatch.stats.sample_gradients import Use, slices, weighted_sq_norms, wide

ROUNDING = (
    1e-4  # of the norm of all gradients that are compared: where one is zero but for rounding, as of keys' biases
)
SAME = 1e-2  # of the gradient's norm: low precision rounds, samples that see each other differ by far more


@dataclass(eq=False)
class RecordedUse:
    """A use of a parameter, and the hook on its output.

    Attributes:
        use: the use.
        is_certain: whether its operation was told to be all that the parameter is used for there; if not, the sum of
            the samples' gradients is compared with the batch's while samples are checked to be apart.
        edge: of the output, while samples are checked to be apart.
        handle: of the hook.
    """

    use: Use
    is_certain: bool
    edge: GradientEdge | None
    handle: Any = None


class SampleNorms:
    """Finds the squared norm of each sample's gradient of every parameter, from recorded uses.

    Args:
        parameters: and their names.
        num_samples: N.
        weigh: parameter -> P of its squared norm g^T P g; None: |g|^2.
        stride: 1 to find every sample's norm, 2 for every other one's, and so on.
        is_checked: whether samples are known not to see each other; if not, a pass back from the last sample tells.

    Attributes:
        sq_norms: parameter -> (n,), of the samples' gradients; complete after `collecting`.
    """

    def __init__(
        self,
        parameters: dict[nn.Parameter, str],
        num_samples: int,
        weigh: Callable[[nn.Parameter], Tensor | None],
        stride: int = 1,
        is_checked: bool = False,
    ) -> None:
        self.sq_norms: dict[nn.Parameter, Tensor] = {}
        self._names = parameters
        self._num_samples = num_samples
        self._weigh = weigh
        self._stride = stride
        self._is_checked = is_checked
        self._is_paused = False
        self._uses: list[RecordedUse] = []
        self._calls: list[ModuleCall] = []
        self._unknown: list[nn.Parameter] = []
        self._handles: list[Any] = []
        self._reached: dict[nn.Parameter, Tensor | None] = {}
        self._num_noted: dict[nn.Parameter, int] | None = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """See the backward pass inside; at the end the norms are there.

        Yields:
            Nothing.

        Raises:
            RuntimeError: samples see each other, or a parameter's use cannot be told apart by samples.
        """
        self._handles += [p.register_hook(partial(self._reach, p)) for p in self._names if p.requires_grad]
        try:
            yield
            self._join_rest()
            self._check_complete()
        finally:
            for handle in (*self._handles, *(recorded.handle for recorded in self._uses)):
                handle.remove()
            for recorded in self._uses:
                recorded.edge = None  # an edge holds the node that holds the hook

    # ------------------------------------------------------------------------------------------- forward

    def add_use(self, use: Use, out: Tensor, is_certain: bool = True) -> RecordedUse:
        """Take an operation's use of a parameter, and wait for the gradient of what it gave."""
        recorded = RecordedUse(use, is_certain, None if self._is_checked else get_gradient_edge(out))
        recorded.handle = out.register_hook(partial(self._arrive, recorded))
        self._uses.append(recorded)
        return recorded

    def drop_use(self, recorded: RecordedUse) -> None:
        """Forget a use."""
        recorded.handle.remove()
        self._uses.remove(recorded)

    def mark(self) -> tuple[int, int]:
        """Return how many uses and calls there are by now."""
        return len(self._uses), len(self._calls)

    def add_call(self, call: ModuleCall, outputs: Mapping[int, Tensor], mark: tuple[int, int]) -> None:
        """Take a call of a module that is to be run again, instead of what it did with its parameters since a mark."""
        inside, self._uses = self._uses[mark[0] :], self._uses[: mark[0]]
        for recorded in inside:
            if recorded.use.parameter in call.parameters:
                recorded.handle.remove()
            else:
                self._uses.append(recorded)
        for inner in self._calls[mark[1] :]:
            inner.parameters = {p: name for p, name in inner.parameters.items() if p not in call.parameters}
        self._calls.append(call)
        self._handles += [out.register_hook(partial(self._return, call, index)) for index, out in outputs.items()]

    def add_unknown(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take parameters that are used in a way that does not tell samples apart: refused, if a gradient comes."""
        self._unknown += parameters

    # ------------------------------------------------------------------------------------------- backward

    @torch.no_grad()
    def _arrive(self, recorded: RecordedUse, grad: Tensor) -> None:
        if self._is_paused:
            return
        use = recorded.use
        use.out_grad = grad.detach()
        if recorded.edge is not None:
            self._check_apart(recorded, grad)
        if self._count()[use.parameter] == 1:
            self.sq_norms[use.parameter] = use.sq_norms(self._weigh(use.parameter), self._stride)
            use.out_grad = None
            self._uses.remove(recorded)

    def _return(self, call: ModuleCall, index: int, grad: Tensor) -> None:
        if self._is_paused:
            return
        if not has_rows(grad, self._num_samples):
            raise self._refusal(next(iter(call.parameters), None), "its module gives what is not one row per sample")
        call.out_grads[index] = grad.detach()

    def _reach(self, parameter: nn.Parameter, grad: Tensor | None) -> None:
        if grad is not None:
            is_single = parameter in self.sq_norms
            self._reached[parameter] = None if is_single else grad.detach()

    def _count(self) -> dict[nn.Parameter, int]:
        if self._num_noted is None:
            self._num_noted = dict.fromkeys(self._names, 0)
            for recorded in self._uses:  # 2 or more: added up at the end, and compared
                self._num_noted[recorded.use.parameter] += 1 if recorded.is_certain or self._is_checked else 2
            for parameter in (parameter for call in self._calls for parameter in call.parameters):
                self._num_noted[parameter] += 2
        return self._num_noted

    def _check_apart(self, recorded: RecordedUse, grad: Tensor) -> None:
        """Send back the gradient of the last sample alone: no other sample may receive any."""
        edge, recorded.edge = recorded.edge, None
        others = [(other, other.edge) for other in self._uses if other.edge is not None and other.edge != edge]
        if not others or edge is None:
            return
        last = torch.zeros_like(grad)
        last[-1] = grad[-1]
        self._is_paused = True
        with torch.enable_grad():
            edges = [other_edge for _, other_edge in others]
            found = torch.autograd.grad([edge], edges, [last], retain_graph=True, allow_unused=True)
        self._is_paused = False
        reached = [(other, grad) for (other, _), grad in zip(others, found, strict=True) if grad is not None]
        for other, _ in reached:
            other.edge = None
        leaks = torch.stack([row[:-1].any() for _, row in reached]).tolist() if reached else []
        for (other, _), leaks_out in zip(reached, leaks, strict=True):
            if leaks_out:
                raise self._refusal(other.use.parameter, "its layer joins samples, or they are not its first axis")

    # ------------------------------------------------------------------------------------------- the end

    def _join_rest(self) -> None:
        """Add up the gradients of parameters that were used more than once, or in a module that is run again."""
        rest = [parameter for parameter in self._reached if parameter not in self.sq_norms]
        noted = [parameter for parameter in rest if self._count()[parameter]]
        norms: dict[nn.Parameter, list[Tensor]] = {parameter: [] for parameter in noted}
        sums = {parameter: torch.zeros_like(wide(parameter.detach())) for parameter in noted}
        stride = self._stride if self._is_checked else 1
        for part in slices(self._num_samples, sum(parameter.numel() for parameter in noted), stride):
            for parameter, grads in self._grads(noted, part).items():
                norms[parameter].append(weighted_sq_norms(grads, self._weigh(parameter)))
                sums[parameter] += grads.sum(0)
        if stride == 1:
            self._check_sums(sums)
        for parameter in noted:
            self.sq_norms[parameter] = torch.cat(norms[parameter])[:: self._stride // stride]

    def _check_sums(self, sums: dict[nn.Parameter, Tensor]) -> None:
        """Compare the sums of samples' gradients with those of the batch."""
        wholes = {parameter: self._reached[parameter] for parameter in sums}
        dense = {
            p: wide(whole.to_dense() if whole.is_sparse else whole) for p, whole in wholes.items() if whole is not None
        }
        norms = {parameter: whole.norm() for parameter, whole in dense.items()}
        total = sum(float(norm) ** 2 for norm in norms.values()) ** 0.5
        for parameter, whole in dense.items():
            bar = max(SAME * float(norms[parameter]), ROUNDING * total)
            if norms[parameter].isfinite() and float((sums[parameter] - whole).norm()) > bar:
                raise self._refusal(parameter, "its gradient is not the sum of the samples' own")

    def _grads(self, parameters: list[nn.Parameter], part: slice) -> dict[nn.Parameter, Tensor]:
        total: dict[nn.Parameter, Tensor] = {}

        def add(parameter: nn.Parameter, grads: Tensor) -> None:
            total[parameter] = total[parameter] + grads if parameter in total else grads

        for use in (recorded.use for recorded in self._uses if recorded.use.out_grad is not None):
            if use.parameter in total or any(use.parameter is parameter for parameter in parameters):
                add(use.parameter, use.grads(part))
        for call in self._calls:
            wanted = [p for p in call.parameters if any(p is parameter for parameter in parameters)]
            if wanted and call.out_grads:
                for parameter, grads in self._run_again(call, wanted, part).items():
                    add(parameter, grads)
        return total

    def _run_again(self, call: ModuleCall, parameters: list[nn.Parameter], part: slice) -> dict[nn.Parameter, Tensor]:
        try:
            return call.grads(parameters, part)
        except RuntimeError as error:
            why = (
                f"its module {type(call.module).__name__} cannot be run sample by sample ({str(error).splitlines()[0]})"
            )
            raise self._refusal(parameters[0], why) from error

    def _check_complete(self) -> None:
        for parameter in self._reached:
            if any(parameter is unknown for unknown in self._unknown):
                raise self._refusal(parameter, "it is used in a way that does not tell samples apart")
            if parameter not in self.sq_norms:
                raise self._refusal(
                    parameter, "no operation with it was seen: the forward pass must run inside sub_batch(), uncompiled"
                )

    def _refusal(self, parameter: nn.Parameter | None, why: str) -> RuntimeError:
        name = "a parameter" if parameter is None else repr(self._names[parameter])
        return RuntimeError(
            f"samples' own gradients of {name} cannot be told: {why}. "
            "Measure micro-batches, or put samples along the first axis everywhere."
        )

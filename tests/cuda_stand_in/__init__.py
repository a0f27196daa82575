"""A GPU that is not there: tensors that say `cuda`, are computed on the CPU, and fail where a GPU would.

    with StandIn() as gpu:
        x = torch.ones(3, device="cuda")
        x.numpy()          # TypeError, as with CUDA
        x + torch.ones(3)  # RuntimeError: tensors on two devices

PyTorch asks `__torch_function__` before it does anything with a tensor of a subclass, and a `TorchFunctionMode` before
it makes a tensor. Here both answer with the same function on the CPU tensor that a device tensor holds, so results,
gradients included, have the bits that the CPU gives. What is not the CPU's:

- A function is refused tensors of two devices. As on CUDA a CPU tensor without dimensions passes as a number, an index
  may lie on the CPU, and `copy_`, `to`, `cpu` and `cuda` go from one to the other, always as a copy.
- `numpy`, `np.asarray` and whatever else reads memory are refused without `.cpu()`.
- A generator draws on its own device only.
- `torch.autocast("cuda")` counts, `torch.autocast("cpu")` does not. The operations that it casts are the CPU's.
- Memory is counted, by storage and rounded as CUDA's allocator does; more than `total` is `torch.OutOfMemoryError`.
  Workspaces of linear algebra are LAPACK's.
- Whenever the host waits for the device (`item`, `bool`, `tolist`, `cpu`, a mask as an index) is counted.
- What `torch.cuda` and `torch.distributed` are asked about it.

What it cannot show: kernels' own rounding, order of sums and speed; what cuBLAS and cuSOLVER really take, and memory
lost between tensors; what goes wrong between streams, or because CUDA runs the backward pass in another thread.
"""

from .device import StandIn

__all__ = ["StandIn"]

"""Triton kernels; the only place that imports triton. Import a submodule only for a Triton backend."""

"""Triton kernels; the only place that imports triton. Import a submodule only when a Triton backend is wanted."""

//! Tests of what crosses processes and the kernel; they are under `tests/`.

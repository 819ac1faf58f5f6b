//! The Helm charts `agent`, `node` and `gateway` are the folders beside this one. The package is their tests.

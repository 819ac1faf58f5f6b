//! Small worlds of network namespaces.

//! A scripted ZDS server.

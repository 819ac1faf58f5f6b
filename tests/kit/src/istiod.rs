//! A scripted delta ADS and CA server.

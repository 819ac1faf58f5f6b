//! An HBONE peer that is scripted frame by frame.

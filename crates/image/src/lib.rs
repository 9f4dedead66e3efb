//! Builds the stubdomain image from packages, reproducibly and without root.
